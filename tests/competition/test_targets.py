"""Labels become targets in the task's form; invalid cells are reported with row and fix."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scenes.competition.table import Table
from scenes.competition.targets import Targets, read_targets, task_kind
from scenes.config import DataConfig
from scenes.config_file import validate


def read(cells: dict[str, list[str]], kind: str | None = None, **data: object) -> Targets:
    count = len(next(iter(cells.values())))
    columns = pd.DataFrame(cells, index=range(2, 2 + count), dtype=str)
    names = [f"{row}.jpg" for row in range(count)]
    return read_targets(Table(Path("train.csv"), names, [], columns), DataConfig(**data), kind)


FLAGS = {"a": ["1", "0", "0"], "b": ["0", "1", "0"], "c": ["0", "0", "1"]}


def test_one_hot_columns_are_classes_in_their_order() -> None:
    targets = read(FLAGS, label_columns=["c", "a", "b"])
    assert targets.task is not None
    assert (targets.task.kind, targets.task.columns) == ("classes", ["c", "a", "b"])
    assert (targets.values.tolist(), targets.values.dtype, targets.problems) == ([1, 2, 0], np.int64, [])


def test_any_number_of_ones_are_labels() -> None:
    targets = read(FLAGS | {"c": ["1.0", "0.0", "1.0"]}, label_columns=["a", "b", "c"])
    assert targets.task is not None
    assert targets.task.kind == "labels"
    assert targets.values.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert targets.values.dtype == np.float32


def test_one_hot_columns_may_be_labels_where_the_config_says_so() -> None:
    assert read(FLAGS, "labels", label_columns=["a", "b", "c"]).values.shape == (3, 3)


@pytest.mark.parametrize("cell", ["", "2", "yes", "0.5"])
def test_a_cell_that_is_neither_0_nor_1(cell: str) -> None:
    problems = read(FLAGS | {"b": ["0", cell, "0"]}, label_columns=["a", "b", "c"]).problems
    assert "'b'" in problems[0].what
    assert f"line 3 ({cell!r})" in problems[0].what


def test_a_single_column_is_a_label_column() -> None:
    assert "set data.label_column: a" in str(read({"a": FLAGS["a"]}, label_columns=["a"]).problems)


def test_classes_need_exactly_one_1_in_a_row() -> None:
    problems = read(FLAGS | {"a": ["1", "1", "0"]}, "classes", label_columns=["a", "b", "c"]).problems
    assert "line 3" in problems[0].what
    assert "task: labels" in problems[0].remedy


@pytest.mark.parametrize("separator", [" ", "|", ", "])
def test_separated_words_are_labels(separator: str) -> None:
    cells = [separator.join(words) for words in (["scab", "rust"], ["rust"], ["mould", "scab", "rust"])]
    targets = read({"label": cells}, "labels", label_separator=separator)
    assert targets.task is not None
    assert targets.task.columns == ["mould", "rust", "scab"]
    assert targets.values.tolist() == [[0, 1, 1], [0, 1, 0], [1, 1, 1]]
    assert not targets.problems


def test_numbers() -> None:
    targets = read({"label": ["1", "2.5", "1e2"]}, "number")
    assert targets.values.tolist() == [1.0, 2.5, 100.0]
    assert not targets.problems


@pytest.mark.parametrize("cell", ["", "nan", "inf", "12 kg", "1,5"])
def test_text_in_a_number_column(cell: str) -> None:
    problems = read({"label": ["1", "2", cell]}, "number").problems
    assert f"line 4 ({cell!r})" in problems[0].what
    assert "'label'" in problems[0].what
    assert "task: classes" in problems[0].remedy


def test_an_empty_cell_is_no_label_of_any_task() -> None:
    for kind in ("classes", "labels"):
        problems = read({"label": ["a b", "", "a"]}, kind).problems
        assert "line 3 ('')" in problems[0].what


@pytest.mark.parametrize(
    ("cells", "kind"), [(["a", "", "b"], None), (["1.5", "", "2.5"], "number"), (["a b", "", "b"], "labels")]
)
def test_a_row_that_is_dropped_needs_no_label(cells: list[str], kind: str | None) -> None:
    assert read({"label": cells}, kind).problems
    found = read({"label": cells}, kind, drop=["1.jpg"])
    assert not found.problems
    assert found.task


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, "classes"),
        ({"metric": "rmse"}, "number"),
        ({"metric": "rmse", "task": "classes"}, "classes"),
        ({"data": {"label_separator": " "}}, "labels"),
        ({"data": {"label_columns": ["a", "b"]}}, None),
        ({"data": {"label_columns": ["a", "b"]}, "task": "labels"}, "labels"),
    ],
)
def test_the_kind_of_task_follows_from_the_config(values: dict[str, object], kind: str | None) -> None:
    assert task_kind(validate({"name": "x", **values}, "test")) == kind
