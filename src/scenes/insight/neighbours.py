"""Finds the training images nearest to an image, by the features of a run's network."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenes.competition.task import Task
from scenes.config import Config
from scenes.data.dataset import Dataset
from scenes.files import write_atomic
from scenes.insight import page
from scenes.model.backbone import Classifier
from scenes.randomness import key
from scenes.training.features import body_features

FILE = "neighbours.npz"
MOST = 5000  # training images; if there are more, a sample
NEAREST = 6
SIDE = 160  # pixels, of a thumbnail


@dataclass(frozen=True)
class Neighbours:
    """Training images to compare others with.

    Attributes:
        mean: float32, shape (f,): the mean of their features.
        units: float32, shape (n, f): their features minus the mean, as unit vectors.
        captions: Their labels and names.
        thumbnails: JPEG data URIs.
    """

    mean: np.ndarray
    units: np.ndarray
    captions: list[str]
    thumbnails: list[str]

    def nearest(self, features: np.ndarray) -> list[dict[str, str]]:
        """Finds the most similar images.

        Args:
            features: float32, shape (f,).

        Returns:
            ``src`` and ``caption`` of each, most similar first.
        """
        cosines = self.units @ _units((features - self.mean)[None])[0]
        best = np.argsort(-cosines, kind="stable")[:NEAREST]
        return [
            {"src": self.thumbnails[at], "caption": f"{self.captions[at]}, similarity {cosines[at]:.2f}"} for at in best
        ]


def _units(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def find_neighbours(model: Classifier, config: Config, data: Dataset, task: Task) -> Neighbours:
    """Computes the features of a run's training images, or of a sample if there are very many.

    Args:
        model: One of the run's networks.
        config: The run's config.
        data: Its training data.
        task: What it predicts, with readable names.
    """
    count = len(data.table)
    chosen = np.sort(np.random.default_rng(key("neighbours", config.seed)).permutation(count)[:MOST]).tolist()
    images = data.images.take(chosen)
    features = body_features(model, images, config.predict_size, config)
    rows = data.fold_table().iloc[chosen]
    names = dict(zip(task.columns, task.names, strict=True))
    labels = [names.get(label, label) for label in rows["label"]]
    captions = [f"{label}, {name}" for label, name in zip(labels, rows["image_name"], strict=True)]
    mean = features.mean(0)
    return Neighbours(
        mean, _units(features - mean), captions, [page.thumbnail(images[row], SIDE) for row in range(len(images))]
    )


def save_neighbours(neighbours: Neighbours, folder: Path) -> None:
    """Writes them into a run's folder, to be read without the training images."""

    def write(file: Path) -> None:
        with file.open("wb") as opened:
            np.savez(
                opened,
                mean=neighbours.mean,
                units=neighbours.units.astype(np.float16),
                captions=np.array(neighbours.captions),
                thumbnails=np.array(neighbours.thumbnails, "S"),
            )

    write_atomic(folder / FILE, write)


def load_neighbours(folder: Path) -> Neighbours | None:
    """Reads what `save_neighbours` wrote; None if there is no such file."""
    if not (folder / FILE).exists():
        return None
    with np.load(folder / FILE, allow_pickle=False) as file:
        thumbnails = [thumbnail.decode() for thumbnail in file["thumbnails"].tolist()]
        return Neighbours(file["mean"], file["units"].astype(np.float32), file["captions"].tolist(), thumbnails)
