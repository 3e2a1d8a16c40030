"""Reads a competition leniently: all usable rows, and a list of what is wrong with the others."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from scenes.competition.rows import Table, class_labels, image_folder, overlap, read_test, read_train, test_source
from scenes.competition.submission import check_submission_form
from scenes.competition.targets import Targets, read_targets, task_kind
from scenes.competition.task import Task
from scenes.config import Config, DataConfig
from scenes.console import Problem, UserError, raise_problems
from scenes.data.decode import UNSCALED
from scenes.data.images import Images, read_good_images, unreadable_rows


@dataclass(frozen=True)
class Side:
    """The training or the test rows whose images can be read.

    Attributes:
        table: The rows.
        images: Their images.
        unreadable: Line, image name and reason of each row whose image cannot be read.
    """

    table: Table
    images: Images
    unreadable: list[tuple[int, str, str]]

    def __len__(self) -> int:
        return len(self.table)


@dataclass(frozen=True)
class Readable:
    """The usable rows, numbered across both sides: training rows first, then test rows.

    Attributes:
        train: The training rows.
        task: What is to be predicted.
        targets: The targets of the training rows, in the task's form.
        test: The test rows, if any.
        problems: What is wrong with the CSVs.
    """

    train: Side
    task: Task
    targets: np.ndarray
    test: Side | None
    problems: list[Problem]

    @property
    def sides(self) -> list[Side]:
        """The training side and, if there is one, the test side."""
        return [self.train, self.test] if self.test else [self.train]

    def __len__(self) -> int:
        return sum(map(len, self.sides))

    def is_test(self, row: int) -> bool:
        """Whether a row is a test row."""
        return row >= len(self.train)

    def image(self, row: int) -> np.ndarray:
        """The row's image: RGB, uint8, shape (h, w, 3)."""
        if self.test and self.is_test(row):
            return self.test.images[row - len(self.train)]
        return self.train.images[row]

    def name(self, row: int) -> str:
        """The image's name."""
        if self.test and self.is_test(row):
            return self.test.table.names[row - len(self.train)]
        return self.train.table.names[row]

    def label(self, row: int) -> str:
        """The row's class name, label names or number; ``test`` for a test row."""
        if self.is_test(row):
            return "test"
        if self.task.kind == "number":
            return f"{self.targets[row]:g}"
        chosen = np.flatnonzero(self.task.as_outputs(self.targets[row : row + 1])[0])
        return ", ".join(self.task.names[at] for at in chosen) or "none"

    @cached_property
    def groups(self) -> list[tuple[str, np.ndarray]]:
        """The training rows of each class, label or range of numbers: (its readable name, the rows)."""
        if self.task.kind == "number":
            strata = self.task.strata(self.targets)
            members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
            spans = [(self.targets[rows].min(), self.targets[rows].max()) for rows in members]
            return [(f"{low:g} to {high:g}", rows) for (low, high), rows in zip(spans, members, strict=True)]
        if self.task.kind == "classes":
            rows = np.argsort(self.targets, kind="stable")
            ends = np.searchsorted(self.targets[rows], np.arange(1, self.task.outputs))
            return list(zip(self.task.names, np.split(rows, ends), strict=True))
        return [(name, np.flatnonzero(self.targets[:, at])) for at, name in enumerate(self.task.names)]


def read(config: Config) -> Readable:
    """Reads the CSVs and decodes the images, leaving out the rows that cannot be used.

    Raises:
        UserError: If no training image can be read.
    """
    data = config.data.model_copy(update={"on_bad_image": "skip"})  # reports missing files together with damaged ones
    size = config.largest_size  # the same cache as training
    table, targets, problems = read_train(config.model_copy(update={"data": data}))
    tables = [(_apply_decisions(table, targets, data), image_folder(data, data.train_csv, data.image_dir), "training")]
    if source := test_source(data):
        try:
            test, test_problems = read_test(data, may_lack_images=True)
            form_problems = check_submission_form(config, targets.task, test) if targets.task and not problems else []
            problems += test_problems + overlap(table, test) + form_problems
            tables.append((test, image_folder(data, source, data.test_image_dir or data.image_dir), "test"))
        except UserError as error:
            problems.append(Problem(str(data.root / source), "cannot be used and is skipped here", str(error)))
    sides = []
    for table, folder, label in tables:
        side, image_problems = _readable(table, folder, data, size, label)
        problems += image_problems
        if side is None:
            problems.append(Problem(str(table.file), "no row has an image that can be read", f"see {folder}"))
        sides.append(side)
    if sides[0] is None:
        raise_problems(problems)
    assert sides[0] is not None
    task, values, _ = read_targets(sides[0].table, data, task_kind(config))
    if task is None:
        raise_problems(problems)
    assert task is not None
    if len(task.names) != task.outputs:  # already among the problems
        task = replace(task, names=task.columns)  # type: ignore[type-var]
    return Readable(sides[0], task, values, sides[1] if len(sides) > 1 else None, problems)


def _apply_decisions(table: Table, targets: Targets, data: DataConfig) -> Table:
    """Returns the labelled rows, with data.drop and data.relabel applied."""
    dropped, column = set(data.drop), data.label_column
    is_class = targets.values.dtype == np.int64
    is_labelled = targets.values >= 0 if is_class else np.isfinite(targets.values).reshape(len(table), -1).all(1)
    table = table.take([row for row in np.flatnonzero(is_labelled).tolist() if table.names[row] not in dropped])
    known = {name: label for name, label in data.relabel.items() if label in class_labels(targets.task)}
    if data.label_columns or not known:
        return table
    given = [known.get(name, label) for name, label in zip(table.names, table.columns[column], strict=True)]
    return replace(table, columns=table.columns.assign(**{column: given}))


def _readable(table: Table, folder: Path, data: DataConfig, size: int, label: str) -> tuple[Side | None, list[Problem]]:
    """Opens the images with valid names and readable files; None if there are none.

    Files that a setting would make readable are returned as problems, and so are all others if none can be read.
    """
    root, seen = os.path.join(os.path.abspath(folder), ""), set()  # noqa: PTH100, PTH118 - fast for many paths
    valid = []
    for row, (name, path) in enumerate(zip(table.names, table.paths, strict=True)):
        is_inside = "\0" not in name and os.path.abspath(path).startswith(root)  # noqa: PTH100
        row_is = (name, path) if label == "test" else (name,)  # a test id may have several images
        if name.strip() and is_inside and row_is not in seen:
            valid.append(row)
        seen.add(row_is)
    table = table.take(valid)
    images, reasons = read_good_images(table, size, data, label)
    if images is None:
        return None, unreadable_rows(table, reasons)
    unscaled = {row: why for row, why in reasons.items() if UNSCALED in why}
    lost = [(table.columns.index[row], table.names[row], why) for row, why in reasons.items() if row not in unscaled]
    good = [row for row in range(len(table)) if row not in reasons]
    return Side(table.take(good), images, lost), unreadable_rows(table, unscaled)
