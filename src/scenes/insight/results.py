"""Reads the files of a finished run: scores, held-out predictions, histories, times."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scenes.competition.decoding import Decoding
from scenes.competition.metric import Metric, log_losses, metric_named
from scenes.competition.task import Task, task_from_dict
from scenes.config import Config
from scenes.console import UserError
from scenes.inference.evaluate import gather
from scenes.inference.oof import ABOUT, read_oof
from scenes.model.weights import renamed
from scenes.runs import FULL, Run, fold_name, read_json

# The keys needed from metrics.json.
METRICS = ("of", "folds", "task", "metric", "views", "per_fold", "calibration", "decoding", "class_names", "optimistic")


@dataclass(frozen=True)
class HeldOut:
    """The held-out predictions of a run: each row is predicted by the fold that did not train on it.

    Attributes:
        task: What is predicted.
        metric: The competition's metric.
        names: Image names, n strings.
        targets: n targets in the task's form.
        folds: int64, shape (n,): the fold of each row.
        predictions: float32, shape (n, outputs): from all views together, calibrated, as they are scored.
        uncalibrated: The same without calibration.
        decoding: How predictions become decisions.
        views: float32, shape (views, n, outputs): from each view alone.
        view_names: The names of the views.
    """

    task: Task
    metric: Metric
    names: list[str]
    targets: np.ndarray
    folds: np.ndarray
    predictions: np.ndarray
    uncalibrated: np.ndarray
    decoding: Decoding
    views: np.ndarray
    view_names: list[str]

    @cached_property
    def decided(self) -> np.ndarray:
        """The predicted classes, int64, shape (n,); labels, 0 or 1, shape (n, labels); or numbers, shape (n,)."""
        decisions = self.decoding.apply(self.predictions)
        if self.task.kind == "classes":
            return decisions.argmax(1)
        return (decisions >= 0.5).astype(np.float32) if self.task.kind == "labels" else decisions[:, 0]

    @cached_property
    def is_right(self) -> np.ndarray:
        """bool, shape (n,): whether the class, or every label, is predicted correctly; meaningless for numbers."""
        agrees = self.decided == self.targets
        return agrees.all(1) if agrees.ndim == 2 else agrees

    @cached_property
    def losses(self) -> np.ndarray:
        """float64, shape (n,): the log loss in nats, for labels their mean; for numbers the absolute error."""
        if self.task.kind == "classes":
            return log_losses(self.predictions, self.targets)
        if self.task.kind == "labels":
            return -np.log(np.maximum(1 - self.gaps, np.finfo(np.float32).tiny)).mean(1)
        return np.abs(self.predictions[:, 0].astype(np.float64) - self.targets)

    @cached_property
    def gaps(self) -> np.ndarray:
        """float64, shape (n, labels): the distance of each label's probability from 0 or 1, whichever is right."""
        return np.abs(self.predictions.astype(np.float64) - self.targets)


def read_metrics(run: Run) -> dict[str, Any] | None:
    """Reads metrics.json; None if no fold is scored.

    Raises:
        UserError: If it is damaged.
    """
    return read_json(run.metrics_file, *METRICS) if run.metrics_file.exists() else None


def read_held_out(run: Run, config: Config, metrics: dict[str, Any]) -> HeldOut:
    """Reads the held-out predictions of a run.

    Args:
        run: A run with a scored fold.
        config: Its config; data.class_names replaces the run's own.
        metrics: From `read_metrics`.

    Raises:
        UserError: If oof.csv does not match the folds, or the class names do not match the classes.
    """
    task = renamed(task_from_dict(metrics["task"]), config)
    table = read_oof(run)
    oof = gather(run, metrics["of"])
    mismatch = UserError(f"{run.oof_file}: does not match the run's folds; run the train.py command again")
    if len(table) != len(oof.rows) or table.shape[1] != len(ABOUT) + task.outputs:
        raise mismatch
    try:
        targets = task.from_texts(table["label"].tolist())
    except ValueError:
        raise mismatch from None
    kept = [at for at, name in enumerate(oof.view_names) if metrics["views"].get(name, {}).get("kept", True)]
    return HeldOut(
        task,
        metric_named(metrics["metric"]["name"], task),
        table["image_name"].tolist(),
        targets,
        table["fold"].to_numpy(np.int64),
        table.iloc[:, len(ABOUT) :].to_numpy(np.float32),
        oof.views[kept].mean(0),
        Decoding.from_dict(metrics["decoding"]),
        oof.views,
        oof.view_names,
    )


def read_histories(run: Run, folds: int) -> dict[str, pd.DataFrame]:
    """Reads each fold's history.csv where there is one, by fold name."""
    return {name: _read_csv(file) for name, file in _files(run, folds, "history.csv").items()}


def read_times(run: Run, folds: int) -> dict[str, dict[str, Any]]:
    """Reads each fold's time.json where there is one, by fold name."""
    return {name: read_json(file, "seconds") for name, file in _files(run, folds, "time.json").items()}


def _read_csv(file: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(file)
    except (FileNotFoundError, ValueError) as error:  # pandas raises ValueErrors
        raise UserError(f"{file}: missing or damaged ({error}); run the train.py command again") from None


def _files(run: Run, folds: int, name: str) -> dict[str, Path]:
    places = {fold_name(fold): run.fold_folder(fold) / name for fold in (*range(folds), FULL)}
    return {fold: file for fold, file in places.items() if file.exists()}
