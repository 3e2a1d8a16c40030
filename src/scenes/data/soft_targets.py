"""Soft targets: probabilities to train on instead of labels, each by models that never saw the fold it is for."""

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from scenes.competition.csv_file import read_columns
from scenes.competition.table import Table, problem_for_rows, some
from scenes.competition.task import Task
from scenes.console import UserError, raise_problems
from scenes.data.folds import ALWAYS_TRAINED
from scenes.data.images import Images

ABOUT = ["image_name", "fold"]  # the columns before the classes'
WRONG_VALUES = {
    "classes": "whose probabilities do not sum to 1",
    "labels": "whose probabilities are not between 0 and 1",
    "number": "without a number",
}
ORIGIN = "python src/distill.py RUN writes such a file"


class SoftTargets(NamedTuple):
    """What one fold trains on instead of labels.

    Attributes:
        rows: int64, shape (m,), ascending: rows of train.csv; those of test.csv are numbered after them.
        outputs: float32, shape (m, outputs): what to train the network's outputs towards, as from `Task.as_outputs`.
    """

    rows: np.ndarray
    outputs: np.ndarray

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where these rows are among its own, -1 for those that it lacks: int64, shape (n,)."""
        places = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        return np.where(self.rows[places] == rows, places, -1)


def read_soft_targets(
    file: Path, train: Table, test: Table | None, task: Task, fold_of: np.ndarray, left_out: Collection[str] = ()
) -> dict[int, SoftTargets]:
    """Reads predictions for training images (distillation) and for test images (pseudo-labels), fold by fold.

    Args:
        file: Columns ``image_name``, ``fold`` and one for each output. A row is used by the fold it names only: the
            models that made it must not have seen that fold's labels.
        train: The n training rows.
        test: The test rows, if there are any.
        task: What is predicted.
        fold_of: int64, shape (n,): each training row's fold.
        left_out: Training images whose rows in the file are ignored.

    Raises:
        UserError: Listing all problems.
    """
    if not file.is_file():
        raise UserError(f"data.soft_targets: no file at {file}; {ORIGIN}")
    columns, problems = read_columns(file, [*ABOUT, *task.columns], ORIGIN)
    raise_problems(problems)
    columns = columns[~columns["image_name"].isin([*left_out])]
    names = columns["image_name"].tolist()
    if test:
        check_names_differ(train, test, names)
    table = Table(file, names, [], columns)
    place = {name: row for row, name in enumerate([*train.names, *(test.names if test else [])])}
    rows = np.array([place.get(name, -1) for name in names], np.int64)
    numbers = {str(fold): fold for fold in np.unique(fold_of[fold_of != ALWAYS_TRAINED]).tolist()}
    folds = np.array([numbers.get(text.strip(), -1) for text in columns["fold"]], np.int64)
    predictions = columns[task.columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    is_train = (rows >= 0) & (rows < len(train))
    held_out = is_train & (fold_of[np.where(is_train, rows, 0)] == folds)
    again = "write it again: " + ORIGIN
    for wrong, what in (
        (rows < 0, "with an image that is in neither CSV"),
        (folds < 0, "with a fold that no training row has"),
        (columns.duplicated(ABOUT), "that repeat an image and fold"),
        (held_out, "that give a fold targets for rows it holds out"),
        (~_are_predictions(task, predictions), WRONG_VALUES[task.kind]),
    ):
        problems += problem_for_rows(table, np.flatnonzero(wrong).tolist(), names, what, again)
    if not problems and (missing := sorted(set(numbers.values()) - set(folds.tolist()))):
        raise UserError(f"{file}: no row for fold {', '.join(map(str, missing))}; {again}")
    raise_problems(problems)
    outputs = task.as_outputs(predictions[:, 0]) if task.kind == "number" else predictions
    order = np.argsort(rows)
    chosen = {fold: order[folds[order] == fold] for fold in numbers.values()}
    return {fold: SoftTargets(rows[own], outputs[own]) for fold, own in chosen.items()}


def check_names_differ(train: Table, test: Table, used: Iterable[str]) -> None:
    """Rejects used names that stand for several images, which soft targets could not tell apart.

    Raises:
        UserError: Listing a few of these names.
    """
    counts = Counter([*train.names, *test.names])
    if several := {name for name in used if counts[name] > 1}:
        raise UserError(
            f"{test.file}: {len(several)} ids name several images in it or {train.file}: {some(sorted(several))}; "
            "soft targets cannot tell them apart; rename the test images"
        )


def _are_predictions(task: Task, values: np.ndarray) -> np.ndarray:
    """Which rows of float32 (m, outputs) a network could have predicted: bool, shape (m,)."""
    if task.kind == "number":
        return np.isfinite(values).all(1)
    is_valid = np.all((values >= 0) & (values <= 1 + 1e-3), axis=1)
    if task.kind == "classes":
        is_valid &= np.abs(values.sum(1, dtype=np.float64) - 1) < 1e-3
    return is_valid


class JoinedImages:
    """The training images, followed by the test images."""

    def __init__(self, first: Images, second: Images) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @property
    def shapes(self) -> np.ndarray:
        """Their heights and widths, int64, shape (n, 2)."""
        return np.concatenate([self.first.shapes, self.second.shapes])

    def __getitem__(self, row: int) -> np.ndarray:
        """RGB, uint8, shape (height, width, 3); read-only."""
        return self.first[row] if row < len(self.first) else self.second[row - len(self.first)]
