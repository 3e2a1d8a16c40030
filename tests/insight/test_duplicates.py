"""Copies and near duplicates are found, other images are not, and no comparison needs all pairs at once."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from scenes.insight import duplicates
from scenes.insight.duplicates import find_pairs, group_pairs, neighbours, perceptual_hash

CPU = torch.device("cpu")


def picture(seed: int, side: int = 96) -> np.ndarray:
    """A smooth random scene."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def recompressed(image: np.ndarray) -> np.ndarray:
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR)


def apart(first: np.ndarray, second: np.ndarray) -> int:
    """How many bits differ between the hashes of two images."""
    return round((1 - float(perceptual_hash(first) @ perceptual_hash(second))) * duplicates.HASH_BITS / 2)


def vectors(seed: int, rows: int, width: int = 32) -> np.ndarray:
    random = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return random / np.linalg.norm(random, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "change",
    [
        recompressed,
        lambda image: cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA),
        lambda image: np.clip(image * 0.8 + 30, 0, 255).astype(np.uint8),
        lambda image: np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2),
    ],
)
def test_a_hash_survives_what_leaves_the_image_the_same(change) -> None:  # type: ignore[no-untyped-def]
    assert all(apart(picture(seed), change(picture(seed))) <= duplicates.SAME_HASH for seed in range(20))


def test_hashes_of_other_images_are_far_apart() -> None:
    assert min(apart(picture(2 * seed), picture(2 * seed + 1)) for seed in range(50)) > duplicates.ALIKE_HASH


def test_a_plain_image_has_a_hash() -> None:
    assert np.linalg.norm(perceptual_hash(np.zeros((1, 5000, 3), np.uint8))) == pytest.approx(1)


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_neighbours_are_those_of_the_whole_matrix(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "CHUNK", chunk)
    units = vectors(0, 40, 5)
    expected = {(a, b) for a in range(40) for b in range(a + 1, 40) if units[a] @ units[b] >= 0.8}
    found = list(zip(*neighbours(units, 0.8, CPU), strict=True))
    assert len(expected) > 20
    assert set(found) == expected
    assert len(found) == len(expected)


def test_a_long_series_is_one_group_and_few_pairs() -> None:
    units = np.ones((300, 4), np.float32) / 2
    first, second = neighbours(units, 0.9, CPU)
    assert len(first) <= 300 * duplicates.NEIGHBOURS
    pairs = pd.DataFrame({"first": first, "second": second})
    assert set(group_pairs(pairs, 300)) == {1}


def test_copies_are_paired_with_the_first_and_near_duplicates_found_once() -> None:
    pixels = np.array(["b", "a", "b", "c", "b"])
    hashes = vectors(1, 5, 63)
    hashes[[2, 4]] = hashes[0]
    hashes[3] = hashes[0]  # has the hash of the three copies without being one
    pairs = find_pairs(pixels, hashes, None, CPU)
    found = list(pairs[["first", "second", "exact"]].itertuples(index=False, name=None))
    assert found == [(0, 2, True), (0, 4, True), (0, 3, False)]
    assert group_pairs(pairs, 5).tolist() == [1, 0, 1, 1, 1]


def test_embeddings_decide_where_hashes_are_only_similar() -> None:
    pixels, hashes = np.array(list("abcdefgh")), vectors(2, 8, 63)
    signs = np.where(hashes > 0, 1, -1).astype(np.float32)
    signs[1], signs[3], signs[5] = signs[0], signs[2], signs[4]
    signs[1, :8] *= -1  # alike: 8 bits apart
    signs[3, :8] *= -1
    signs[5, :20] *= -1  # not alike
    embeddings = vectors(3, 8, 64)
    embeddings[1] = embeddings[0] + 0.05 * vectors(4, 1, 64)[0]
    embeddings[5] = embeddings[4] + 0.01 * vectors(5, 1, 64)[0]
    hashes = signs / np.sqrt(np.float32(63))
    pairs = find_pairs(pixels, hashes, embeddings, CPU)
    assert set(zip(pairs["first"], pairs["second"], strict=True)) == {(0, 1), (4, 5)}
    assert pairs["likeness"].is_monotonic_decreasing
    assert not len(find_pairs(pixels, hashes, None, CPU))


def test_one_image_has_no_pairs() -> None:
    assert not len(find_pairs(np.array(["a"]), vectors(0, 1, 63), vectors(0, 1), CPU))
    assert group_pairs(pd.DataFrame({"first": [], "second": []}, dtype=int), 3).tolist() == [0, 0, 0]
