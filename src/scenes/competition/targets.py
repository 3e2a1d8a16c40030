"""Reads training rows' labels as targets: classes, several labels or a number."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from scenes.competition.label_text import FLAGS, sort_labels
from scenes.competition.table import Table, problem_for_rows, some
from scenes.competition.task import Labels, Number, Task, class_task
from scenes.config import Config, DataConfig
from scenes.console import Problem

NUMBER_METRICS = ("rmse", "mae")


class Targets(NamedTuple):
    """The targets of training rows.

    Attributes:
        task: What is to be predicted; None if problems leave it unknown.
        values: In the task's form (see `scenes.competition.task`), one for each row; meaningless if there are problems.
        problems: What is wrong with the labels.
    """

    task: Task | None
    values: np.ndarray
    problems: list[Problem]


def task_kind(config: Config) -> str | None:
    """What is to be predicted, as far as the config says: None for 0/1 columns, where the rows decide."""
    if config.task or config.data.label_columns:
        return config.task
    if config.data.label_separator:
        return "labels"
    return "number" if config.metric in NUMBER_METRICS else "classes"


def read_targets(table: Table, data: DataConfig, kind: str | None) -> Targets:
    """Reads the labels of training rows.

    Args:
        table: The rows.
        data: The config's data section.
        kind: The kind of task, see `task_kind`.
    """
    if data.label_columns:
        return _from_columns(table, data.label_columns, data.class_names, kind)
    if kind == "labels":
        return _from_words(table, data)
    return _numbers(table, data) if kind == "number" else _classes(table, data)


def _classes(table: Table, data: DataConfig) -> Targets:
    """One column of class labels. A label is text: `none` and 0.5 are labels too."""
    labels = table.columns[data.label_column].tolist()
    counts = Counter(labels)
    problems: list[Problem] = []
    padded = {label for label in counts if label != label.strip() != "" and label.strip() in counts}
    are_numbers = sum(bool(re.fullmatch(r"[-+]?\d+(\.\d*)?", label)) for label in counts) > len(counts) / 2
    missing = {label for label in counts if are_numbers and label.lower() == "nan"}
    for wrong, what, remedy in (
        ({label for label in counts if not label.strip()}, "with an empty label", "label or remove them"),
        (padded, "with spaces around the label, which make it a class of its own", "remove the spaces"),
        (missing, "with a missing value as label", "label or remove them"),
    ):
        rows = [row for row, label in enumerate(labels) if label in wrong]
        problems += _label_problems(table, rows, labels, what, remedy, data)
        counts = Counter({label: count for label, count in counts.items() if label not in wrong})
    classes = sort_labels(list(counts))
    problems += _name_problems(table, classes, data.class_names)
    if len(classes) == 1:
        problems.append(
            Problem(str(table.file), f"all rows have the label {classes[0]!r}", "at least two classes are needed")
        )
    place = {label: at for at, label in enumerate(classes)}
    values = np.array([place.get(label, -1) for label in labels], np.int64)
    return Targets(class_task(classes, data.class_names), values, problems)


def _from_columns(table: Table, columns: list[str], names: list[str] | None, kind: str | None) -> Targets:
    """Several columns of 0 and 1: classes where each row has exactly one 1, else labels."""
    problems: list[Problem] = []
    remedy = "write 0 or 1; of several numbers per row only one can be predicted, data.label_column"
    if len(columns) == 1:
        problems.append(Problem("data.label_columns", "is a single column", f"set data.label_column: {columns[0]}"))
    values = np.zeros((len(table), len(columns)), np.float32)
    for at, column in enumerate(columns):
        cells = table.columns[column].str.strip().tolist()
        values[:, at] = [FLAGS.get(cell, np.nan) for cell in cells]
        wrong = np.flatnonzero(np.isnan(values[:, at]))
        problems += problem_for_rows(table, wrong, cells, f"with neither 0 nor 1 in {column!r}", remedy)
    problems += _name_problems(table, columns, names)
    ones = np.nansum(values, 1)
    if kind is None:
        kind = "classes" if (ones == 1).all() else "labels"
    if kind == "number":
        problems.append(Problem("task", "a number is in one column", "set data.label_column, not data.label_columns"))
    if kind == "labels":
        return Targets(Labels(list(columns), list(names or columns)), values, problems)
    if not problems:
        remedy = "one column must be 1 and the others 0; for any number of labels per row, set task: labels"
        shown = [f"{name}: {count:.0f} of {len(columns)}" for name, count in zip(table.names, ones, strict=True)]
        problems += problem_for_rows(table, np.flatnonzero(ones != 1), shown, "without exactly one class", remedy)
    return Targets(class_task(columns, names), np.nan_to_num(values).argmax(1).astype(np.int64), problems)


def _from_words(table: Table, data: DataConfig) -> Targets:
    """One column of separated labels."""
    separator = data.label_separator or " "
    cells = table.columns[data.label_column].tolist()
    words = [list(dict.fromkeys(filter(None, map(str.strip, cell.split(separator))))) for cell in cells]
    empty = [row for row, found in enumerate(words) if not found]
    problems = _label_problems(
        table, empty, cells, "with an empty label", "label them, with a word such as `none` where no label fits", data
    )
    labels = sort_labels(list({word for found in words for word in found}))
    problems += _name_problems(table, labels, data.class_names)
    if len(labels) == 1:
        problems.append(Problem(str(table.file), f"all rows have the label {labels[0]!r}", "two labels are needed"))
    place = {label: at for at, label in enumerate(labels)}
    values = np.zeros((len(table), len(labels)), np.float32)
    for row, found in enumerate(words):
        values[row, [place[word] for word in found]] = 1
    return Targets(Labels(labels, list(data.class_names or labels)), values, problems)


def _numbers(table: Table, data: DataConfig) -> Targets:
    """One column of numbers."""
    column = data.label_column
    cells = table.columns[column].tolist()
    values = pd.to_numeric(pd.Series(cells), errors="coerce").to_numpy(np.float64, copy=True)
    wrong = np.flatnonzero(~np.isfinite(values))
    problems = _label_problems(
        table, wrong, cells, f"with no number in {column!r}", "write numbers, or set task: classes for labels", data
    )
    sound = values[np.isfinite(values)].astype(np.float32)
    values[wrong] = sound.mean() if len(sound) else 0  # of rows that data.drop names
    if len(sound) and sound.min() == sound.max():
        problems.append(Problem(str(table.file), f"all rows have {column!r} {cells[0]}", "there is nothing to predict"))
    task = Number.of(column, sound) if len(sound) else None
    return Targets(task, values.astype(np.float32), problems)


def _label_problems(
    table: Table, rows: Iterable[int], cells: Sequence[str], what: str, remedy: str, data: DataConfig
) -> list[Problem]:
    """Reports rows by their labels, but for those whose label data.drop or data.relabel overrules."""
    overruled = {*data.drop, *data.relabel}
    counted = [row for row in rows if table.names[row] not in overruled]
    return problem_for_rows(table, counted, cells, what, f"{remedy}; or name them in data.drop")


def _name_problems(table: Table, columns: list[str], names: list[str] | None) -> list[Problem]:
    """Finds what is wrong with data.class_names."""
    problems = []
    if columns and names and len(names) != len(columns):
        what = f"data.class_names has {len(names)} names for {len(columns)} labels ({', '.join(columns[:10])})"
        problems.append(Problem(str(table.file), what, "give one name for each label, in this order"))
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        problems.append(
            Problem(str(table.file), f"data.class_names repeats {some(repeated)}", "give each its own name")
        )
    return problems
