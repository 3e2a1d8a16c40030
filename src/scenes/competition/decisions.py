"""Decisions about individual training rows: data.drop, data.relabel and data.near_duplicates."""

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scenes.competition.csv_file import read_columns
from scenes.competition.table import EXAMPLES, Table, problem_for_rows, some
from scenes.config import DataConfig
from scenes.console import Problem, UserError, raise_problems


def decision_problems(
    table: Table, classes: Sequence[str], data: DataConfig, left_out: Collection[str] = ()
) -> list[Problem]:
    """Finds what is wrong with data.drop and data.relabel.

    Args:
        table: The training rows.
        classes: Their labels; empty for a task without classes.
        data: The config's data section.
        left_out: Training images that are no longer used.
    """
    problems: list[Problem] = []

    def report(key: str, wrong: Iterable[str], what: str, known: Sequence[str], otherwise: str) -> None:
        if found := list(dict.fromkeys(wrong)):
            near = [match for name in found[:EXAMPLES] for match in difflib.get_close_matches(name, known, 1, 0.5)]
            remedy = f"did you mean {', '.join(map(repr, dict.fromkeys(near)))}?" if near else otherwise
            problems.append(Problem(key, f"{what}: {some(found)}", remedy))

    names, dropped = {*table.names, *left_out}, Counter(data.drop)
    stray = f"names are as in the column {data.id_column or data.image_column!r}"
    for key, listed in (("data.drop", data.drop), ("data.relabel", data.relabel)):
        report(key, (name for name in listed if name not in names), f"not in {table.file}", table.names, stray)
    if data.relabel and not classes:
        problems.append(Problem("data.relabel", "is for tasks with classes only", "leave it out"))
    strange = (label for label in data.relabel.values() if classes and label not in classes)
    report("data.relabel", strange, "unknown label", classes, f"labels are {', '.join(classes[:20])}")
    report("data.drop", (name for name in dropped if dropped[name] > 1), "repeated", [], "name it once")
    both = (name for name in data.relabel if name in dropped)
    report("data.relabel", both, "also in data.drop", [], "remove it from one of them")
    return problems


def decide(table: Table, targets: np.ndarray, classes: Sequence[str], data: DataConfig) -> tuple[list[int], np.ndarray]:
    """Applies data.drop and data.relabel.

    Call it after the folds are made from all rows and the file's own labels: then no decision moves another row to a
    different fold, and runs with and without decisions can be compared row by row.

    Args:
        table: The n training rows, free of `decision_problems`.
        targets: Their targets, shape (n,) or (n, labels).
        classes: The class labels; empty for a task without classes.
        data: The config's data section.

    Returns:
        The remaining rows and their targets.

    Raises:
        UserError: If a class has no row left.
    """
    dropped, place = set(data.drop), {label: at for at, label in enumerate(classes)}
    kept = [row for row, name in enumerate(table.names) if name not in dropped]
    before, targets = targets, targets.copy()
    for row, name in enumerate(table.names):
        if name in data.relabel:
            targets[row] = place[data.relabel[name]]
    counts = [np.bincount(each, minlength=len(classes)) if classes else () for each in (before, targets[kept])]
    gone = [label for label, had, has in zip(classes, *counts, strict=True) if had and not has]
    what, remedy = "leaves the class {!r} without rows", "keep some of its rows"
    raise_problems([Problem("data.drop, data.relabel", what.format(label), remedy) for label in gone])
    return kept, targets[kept]


def read_near_duplicates(file: Path, names: Sequence[str], left_out: Collection[str]) -> np.ndarray:
    """Reads groups of training images that are near duplicates.

    Args:
        file: Columns ``image_name`` and ``group``, as check.py writes them.
        names: The n training images.
        left_out: Training images that may be in the file but are no longer used.

    Returns:
        int64, shape (n,): equal for rows of the same group; a row in no group has its own number.

    Raises:
        UserError: Listing all problems.
    """
    if not file.is_file():
        raise UserError(f"data.near_duplicates: no file at {file}; python src/check.py CONFIG writes it")
    columns, problems = read_columns(file, ["image_name", "group"], "python src/check.py CONFIG writes it")
    listed, groups = columns["image_name"].tolist(), columns["group"].tolist()
    table = Table(file, listed, [], columns)
    known, repeated = {*names, *left_out}, columns["image_name"].duplicated()
    for wrong, what, remedy in (
        ([name not in known for name in listed], "with an image that is not a training image", "run check.py again"),
        (repeated, "with a duplicate image", "keep one row per image"),
        ([not group.strip() for group in groups], "with an empty group", "give each row a group"),
    ):
        problems += problem_for_rows(table, np.flatnonzero(wrong), listed, what, remedy)
    raise_problems(problems)
    group_of = dict(zip(listed, pd.factorize(columns["group"])[0], strict=True))
    return np.array([group_of.get(name, -1 - row) for row, name in enumerate(names)], np.int64)
