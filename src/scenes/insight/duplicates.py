"""Finds duplicate images: identical ones by their pixels, near duplicates by perceptual hash and embedding."""

import cv2
import numpy as np
import pandas as pd
import torch

from scenes.data.folds import connected_rows

HASH_BITS = 63
CHUNK = 512  # rows compared with all others at once
NEIGHBOURS = 20  # per row: enough to link a series of any length, and at most 20 n pairs
# Thresholds for near duplicates, chosen by looking at pairs of 7,997 Intel scenes, with EfficientNet-Lite0's features.
# All 27 pairs whose hashes differ by at most 4 bits show the same scene; so do all 21 pairs with 6 to 12 bits and a
# cosine of at least 0.7 (the next has 0.67), and all 20 pairs with any hash and at least 0.9 (the next has 0.87).
SAME_HASH = 4
ALIKE_HASH, ALIKE_COSINE = 12, 0.7
SAME_COSINE = 0.93


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """Hashes an image's coarse structure: the signs of its lowest frequencies (pHash, Zauner 2010).

    Args:
        image: RGB, uint8, shape (h, w, 3).

    Returns:
        float32, shape (63,), a unit vector: the cosine of two hashes that differ in d bits is 1 - 2 d / 63.
    """
    gray = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(gray.astype(np.float32))[:8, :8].ravel()[1:]  # without the mean brightness
    return np.where(low > np.median(low), 1, -1).astype(np.float32) / np.sqrt(np.float32(HASH_BITS))


def find_pairs(
    pixel_hashes: np.ndarray, hashes: np.ndarray, embeddings: np.ndarray | None, device: torch.device
) -> pd.DataFrame:
    """Finds pairs of identical and nearly identical images; mirrored copies are not found.

    Args:
        pixel_hashes: (n,) strings, equal for identical images.
        hashes: float32, shape (n, 63), see `perceptual_hash`.
        embeddings: float32, shape (n, f); if None, only very similar hashes count.
        device: Where to compute.

    Returns:
        The columns ``first`` < ``second`` (rows), ``exact``, and ``likeness`` in [0, 1], in descending order. Each copy
        is paired only with the first one, and so is a near duplicate of several copies.
    """
    _, places, inverse = np.unique(pixel_hashes, return_index=True, return_inverse=True)
    original = places[inverse]
    rows = np.arange(len(original))
    copies, unique = rows[original != rows], rows[original == rows]
    exact = pd.DataFrame({"first": original[copies], "second": copies, "exact": True, "likeness": 1.0})
    near, likeness = _near(hashes[unique], None if embeddings is None else embeddings[unique], device)
    alike = pd.DataFrame({"first": unique[near[0]], "second": unique[near[1]], "exact": False, "likeness": likeness})
    return pd.concat([exact, alike.sort_values("likeness", ascending=False, kind="stable")], ignore_index=True)


def _near(
    hashes: np.ndarray, embeddings: np.ndarray | None, device: torch.device
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    if embeddings is None:
        pairs = neighbours(hashes, _cosine(SAME_HASH), device)
        return pairs, _cosines(hashes, pairs)
    centred = embeddings - embeddings.mean(0)
    units = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    by_hash, by_cosine = neighbours(hashes, _cosine(ALIKE_HASH), device), neighbours(units, SAME_COSINE, device)
    is_alike = _cosines(units, by_hash) >= ALIKE_COSINE
    first, second = (np.concatenate([h[is_alike], c]) for h, c in zip(by_hash, by_cosine, strict=True))
    first, second = np.unique(np.stack([first, second]), axis=1)
    return (first, second), _cosines(units, (first, second))


def _cosine(bits: int) -> float:
    """The cosine of two hashes that differ in this many bits, minus a margin for rounding."""
    return 1 - 2 * (bits + 0.5) / HASH_BITS


def _cosines(units: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return np.einsum("nf,nf->n", units[pairs[0]], units[pairs[1]])


def neighbours(units: np.ndarray, least: float, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Finds pairs of similar vectors without a matrix of all pairs.

    Args:
        units: float32, shape (n, f): unit vectors.
        least: The smallest cosine that counts, above 0.
        device: Where to compute.

    Returns:
        The first and second rows, int64, first < second; at most the 20 nearest of each first row.
    """
    vectors = torch.from_numpy(units).to(device)
    first, second = [], []
    for start in range(0, len(vectors), CHUNK):
        cosines = (vectors[start : start + CHUNK] @ vectors[start:].T).triu(1)  # with later rows only
        best, columns = cosines.topk(min(NEIGHBOURS, cosines.shape[1]), 1)
        at, place = torch.nonzero(best >= least, as_tuple=True)
        first.append((at + start).cpu().numpy())
        second.append((columns[at, place] + start).cpu().numpy())
    return np.concatenate(first), np.concatenate(second)


def group_pairs(pairs: pd.DataFrame, count: int) -> np.ndarray:
    """Groups rows that are connected by pairs, directly or indirectly.

    Args:
        pairs: From `find_pairs`, only among the first `count` rows.
        count: The number of rows.

    Returns:
        int64, shape (count,): group numbers from 1; 0 for a row that is in no pair.
    """
    labels = connected_rows(pairs["first"].to_numpy(), pairs["second"].to_numpy(), count)
    is_single = np.bincount(labels)[labels] == 1
    numbers = np.zeros(count, np.int64)
    numbers[~is_single] = pd.factorize(labels[~is_single])[0] + 1
    return numbers
