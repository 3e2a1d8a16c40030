"""Reads the files of a finished run: scores, held-out predictions, histories, times."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scenes.competition.metric import log_losses
from scenes.config import Config
from scenes.console import UserError
from scenes.data.folds import FULL, fold_name
from scenes.inference.evaluate import gather
from scenes.runs import Run, read_json

METRICS = ("of", "folds", "per_class", "class_names", "views", "optimistic")  # needed from metrics.json
ABOUT = 3  # columns of oof.csv before the probabilities: image_name, label, fold


@dataclass(frozen=True)
class HeldOut:
    """The held-out predictions of a run: each row is predicted by the fold that did not train on it.

    Attributes:
        names: Image names, n strings.
        targets: int64, shape (n,): the true classes.
        folds: int64, shape (n,).
        probabilities: float32, shape (n, classes): averaged over views, as they are scored.
        views: float32, shape (views, n, classes): of each view alone.
        view_names: The names of the views.
        classes: The labels as the data spells them.
        class_names: The same for people to read.
    """

    names: list[str]
    targets: np.ndarray
    folds: np.ndarray
    probabilities: np.ndarray
    views: np.ndarray
    view_names: list[str]
    classes: list[str]
    class_names: list[str]

    @cached_property
    def predicted(self) -> np.ndarray:
        """int64, shape (n,): the most probable class."""
        return self.probabilities.argmax(1)

    @cached_property
    def hits(self) -> np.ndarray:
        """float64, shape (n,): 1 where the prediction is correct, else 0."""
        return (self.predicted == self.targets).astype(np.float64)

    @cached_property
    def losses(self) -> np.ndarray:
        """float64, shape (n,): log losses in nats."""
        return log_losses(self.probabilities, self.targets)


def read_metrics(run: Run) -> dict[str, Any] | None:
    """Reads metrics.json; None if no fold is scored.

    Raises:
        UserError: If it is damaged.
    """
    return read_json(run.metrics_file, *METRICS) if run.metrics_file.exists() else None


def read_held_out(run: Run, config: Config, metrics: dict[str, Any]) -> HeldOut:
    """Reads the held-out rows of a run.

    Args:
        run: A run with a scored fold.
        config: Its config; data.class_names replaces the run's own.
        metrics: From `read_metrics`.

    Raises:
        UserError: If oof.csv does not fit the folds, or the class names do not fit the classes.
    """
    # By position, because a class may have the name of another column.
    table = _read_csv(run.oof_file, header=None, skiprows=1, dtype={0: str, 1: str}, keep_default_na=False)
    oof = gather(run, metrics["of"])
    classes = list(metrics["per_class"])
    if len(table) != len(oof.rows) or table.shape[1] != ABOUT + len(classes) or not set(table[1]) <= set(classes):
        raise UserError(f"{run.oof_file}: does not match the folds in the run; run the train.py command again")
    names = config.data.class_names or metrics["class_names"]
    if len(names) != len(classes):
        raise UserError(f"data.class_names: {len(names)} names for {len(classes)} classes ({', '.join(classes)})")
    place = {label: at for at, label in enumerate(classes)}
    return HeldOut(
        table[0].tolist(),
        np.array([place[label] for label in table[1]], np.int64),
        table[2].to_numpy(np.int64),
        table.iloc[:, ABOUT:].to_numpy(np.float32),
        oof.views,
        oof.view_names,
        classes,
        names,
    )


def read_histories(run: Run, folds: int) -> dict[str, pd.DataFrame]:
    """Reads each fold's history.csv where there is one, by fold name."""
    return {name: _read_csv(file) for name, file in _files(run, folds, "history.csv").items()}


def read_times(run: Run, folds: int) -> dict[str, dict[str, Any]]:
    """Reads each fold's time.json where there is one, by fold name."""
    return {name: read_json(file, "seconds") for name, file in _files(run, folds, "time.json").items()}


def _read_csv(file: Path, **options: Any) -> pd.DataFrame:
    """Reads a CSV of a run.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        return pd.read_csv(file, **options)
    except (FileNotFoundError, ValueError) as error:  # pandas' own are ValueErrors
        raise UserError(f"{file}: missing or damaged ({error}); run the train.py command again") from None


def _files(run: Run, folds: int, name: str) -> dict[str, Path]:
    places = {fold_name(fold): run.fold_folder(fold) / name for fold in (*range(folds), FULL)}
    return {fold: file for fold, file in places.items() if file.exists()}
