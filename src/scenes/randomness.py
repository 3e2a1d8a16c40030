"""Randomness as a pure function of its purpose, never of hidden generator state."""

import random
from hashlib import blake2b

import numpy as np


def key(*parts: int | str) -> int:
    """Hashes the purpose of a random draw to a 64-bit seed.

    `np.random.SeedSequence` is not used: it gives [1, 2] and [1, 2, 0] the same stream.

    Args:
        *parts: The purpose and its coordinates, e.g. ``("augment", seed, fold, epoch, row)``.

    Returns:
        An integer in [0, 2**64).
    """
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def seed_all(seed: int) -> None:
    """Seeds Python, NumPy and torch (CPU and GPU), for code that draws from global generators.

    Args:
        seed: An integer in [0, 2**64), usually a `key`.
    """
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)
