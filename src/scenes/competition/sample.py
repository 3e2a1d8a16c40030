"""The built-in sample competition: drawings of six kinds of scenes, to try everything without a download."""

import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scenes.competition.sample_images import draw_image
from scenes.console import UserError
from scenes.environment import usable_cores
from scenes.randomness import key

CLASS_NAMES = ["buildings", "forest", "glacier", "mountain", "sea", "street"]


def _labels(seed: int, count: int) -> NDArray[np.int64]:
    """The class of each drawing: any six neighbours hold each class once, in random order."""
    sixes = [np.random.default_rng(key("sample-label", seed, six)).permutation(6) for six in range(count // 6 + 1)]
    return np.concatenate(sixes)[:count]


def _split(labels: NDArray[np.int64], test_rows: int, rng: Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Splits the drawings at random into train and test, both balanced within one."""
    counts, rounds = np.bincount(labels, minlength=6), np.empty(len(labels), np.int64)
    for label in range(6):
        rounds[labels == label] = rng.permutation(counts[label])
    # Test takes whole rounds of the six classes; from a partial round, first the classes with one more drawing.
    order = np.lexsort((-counts[labels], rounds))
    return rng.permutation(order[test_rows:]), rng.permutation(order[:test_rows])


def _write(folder: Path, seed: int, size: int, drawing: tuple[int, int]) -> None:
    """Draws one image, given by its number and its class."""
    number, label = drawing
    picture = draw_image(seed, number, label, size)[..., ::-1]
    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
    (folder / f"{number}.jpg").write_bytes(jpeg.tobytes())


def draw(root: Path, train_rows: int = 600, test_rows: int = 200, seed: int = 0, size: int = 150) -> None:
    """Draws the sample competition in the layout of a competition.

    Below `root`: train.csv, test.csv, sample_submission.csv, SceneImages/NUMBER.jpg, and test_labels.csv, the answers.
    Drawing NUMBER is a pure function of (seed, NUMBER, size); the row counts only decide which are train and test.
    Does nothing if there already is a train.csv.

    Args:
        root: The folder to create; it may exist if it is empty.
        train_rows: The number of labelled images.
        test_rows: The number of images to predict.
        seed: A different seed gives a different competition.
        size: Height and width in pixels.

    Raises:
        UserError: If `root` holds other files.
    """
    root = Path(root).resolve()
    if (root / "train.csv").exists():
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: holds files but no train.csv; name a new or an empty folder for the sample")
    labels = _labels(seed, train_rows + test_rows)
    train, test = _split(labels, test_rows, np.random.default_rng(key("sample-split", seed)))
    tables = {
        "train.csv": ["image_name,label", *(f"{index}.jpg,{labels[index]}" for index in train)],
        "test.csv": ["image_name", *(f"{index}.jpg" for index in test)],
        "sample_submission.csv": ["image_name,label", *(f"{index}.jpg,0" for index in test)],
        "test_labels.csv": ["image_name,label", *(f"{index}.jpg,{labels[index]}" for index in test)],
    }
    half_done = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    try:
        (half_done / "SceneImages").mkdir(parents=True)
        write = partial(_write, half_done / "SceneImages", seed, size)
        with ProcessPoolExecutor(usable_cores(), get_context("spawn")) as pool:
            list(pool.map(write, enumerate(labels), chunksize=50))
        for name, lines in tables.items():
            (half_done / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
        try:
            half_done.replace(root)
        except OSError:
            if not (root / "train.csv").exists():  # else another process has just drawn it
                raise
    finally:
        shutil.rmtree(half_done, ignore_errors=True)
