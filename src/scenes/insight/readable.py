"""Reads a competition leniently: every usable row, and a list of what is wrong with the others."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scenes.competition.rows import Labels, Table, overlap, read_labels, read_test, read_train, test_source
from scenes.competition.submission import check_submission_form
from scenes.competition.task import class_task
from scenes.config import Config, DataConfig
from scenes.console import Problem, UserError, raise_problems
from scenes.data.images import Images, read_good_images


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
    """The usable rows, numbered over both sides: training rows first, then test rows.

    Attributes:
        train: The training rows.
        labels: Their targets, and the classes.
        test: The test rows, if any.
        problems: What is wrong with the CSVs.
    """

    train: Side
    labels: Labels
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
        """RGB, uint8, shape (h, w, 3)."""
        if self.test and self.is_test(row):
            return self.test.images[row - len(self.train)]
        return self.train.images[row]

    def name(self, row: int) -> str:
        """The image's name."""
        if self.test and self.is_test(row):
            return self.test.table.names[row - len(self.train)]
        return self.train.table.names[row]

    def label(self, row: int) -> str:
        """The name of the row's class, or ``test``."""
        return "test" if self.is_test(row) else self.labels.class_names[self.labels.targets[row]]


def read(config: Config) -> Readable:
    """Reads the CSVs and decodes the images, leaving out the rows that cannot be used.

    Raises:
        UserError: If no training image can be read.
    """
    data = config.data.model_copy(update={"on_bad_image": "skip"})  # lists missing files together with damaged ones
    size = config.largest_size  # the same cache as training
    table, labels, problems = read_train(data, None)
    tables = [(_decided(table, labels, data), data.image_dir, "training")]
    if source := test_source(data):
        try:
            test, test_problems = read_test(data, may_lack_images=True)
            form_problems = [] if problems else check_submission_form(config, class_task(labels.classes), test)
            problems += test_problems + overlap(table, test) + form_problems
            tables.append((test, data.test_image_dir or data.image_dir, "test"))
        except UserError as error:
            problems.append(Problem(str(data.root / source), "cannot be used and is left out here", str(error)))
    sides = [_readable(table, data.root / folder, data, size, label) for table, folder, label in tables]
    if sides[0] is None:
        nothing = Problem(str(table.file), "no row has an image that can be read", f"see {data.root / data.image_dir}")
        raise_problems([*problems, nothing])
    assert sides[0] is not None
    if len(sides) > 1 and sides[1] is None:
        problems.append(Problem(str(tables[1][0].file), "no row has an image that can be read", "check data.image_dir"))
    labels, _ = read_labels(sides[0].table, data, None)
    if len(labels.class_names) != len(labels.classes):  # already among the problems
        labels = Labels(labels.targets, labels.classes, labels.classes)
    return Readable(sides[0], labels, sides[1] if len(sides) > 1 else None, problems)


def _decided(table: Table, labels: Labels, data: DataConfig) -> Table:
    """The labelled rows, with data.drop and data.relabel applied."""
    dropped, column = set(data.drop), data.label_column
    is_kept = [target >= 0 and name not in dropped for name, target in zip(table.names, labels.targets, strict=True)]
    table = table.take(np.flatnonzero(is_kept).tolist())
    known = {name: label for name, label in data.relabel.items() if label in labels.classes}
    given = [known.get(name, label) for name, label in zip(table.names, table.columns[column], strict=True)]
    return replace(table, columns=table.columns.assign(**{column: given}))


def _readable(table: Table, folder: Path, data: DataConfig, size: int, label: str) -> Side | None:
    """Opens the images with valid names and readable files; None if there are none."""
    root, seen = f"{os.path.normpath(folder)}{os.sep}", set()
    valid = []
    for row, (name, path) in enumerate(zip(table.names, table.paths, strict=True)):
        is_inside = "\0" not in name and os.path.normpath(path).startswith(root)
        if name.strip() and is_inside and name not in seen:
            valid.append(row)
        seen.add(name)
    table = table.take(valid)
    images, reasons = read_good_images(table, size, data, label)
    unreadable = [(table.columns.index[row], table.names[row], why) for row, why in reasons.items()]
    good = [row for row in range(len(table)) if row not in reasons]
    return Side(table.take(good), images, unreadable) if images else None
