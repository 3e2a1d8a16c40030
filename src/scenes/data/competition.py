"""The competition's CSVs: read strictly into tables, with a list of everything that is wrong."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scenes.config import DataConfig
from scenes.console import Problem, UserError

EXAMPLES = 5


@dataclass(frozen=True)
class Table:
    """The rows of one CSV.

    Attributes:
        csv: Where they were read.
        names: Image names as the CSV has them, n strings.
        paths: The image files, n paths.
        columns: All columns as strings, n rows.
    """

    csv: Path
    names: list[str]
    paths: list[Path]
    columns: pd.DataFrame

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Labels:
    """What the training rows are.

    Attributes:
        targets: int64, shape (n,), positions in `classes`.
        classes: The labels as the CSV has them, integers in numerical order, words in alphabetical order.
        class_names: The same for people to read.
    """

    targets: np.ndarray
    classes: list[str]
    class_names: list[str]


def read_train(config: DataConfig, folds: int | None) -> tuple[Table, Labels, list[Problem]]:
    """Reads the training CSV.

    Args:
        config: The config's data section.
        folds: How many folds every class must reach; None for no such check.

    Returns:
        The table, the labels and what is wrong with them, most basic first.

    Raises:
        UserError: If there is nothing to read.
    """
    csv = config.root / config.train_csv
    wanted = [config.image_column, config.label_column]
    wanted += [column for column in (config.group_column, config.fold_column) if column]
    columns, problems = _read_csv(csv, wanted)
    table, table_problems = _table(columns, csv, config, config.image_dir)
    labels, label_problems = _labels(columns, csv, config, folds)
    return table, labels, problems + table_problems + label_problems


def read_test(config: DataConfig) -> tuple[Table, list[Problem]]:
    """Reads the test CSV.

    Raises:
        UserError: If there is nothing to read.
    """
    csv = config.root / config.test_csv
    columns, problems = _read_csv(csv, [config.image_column])
    table, table_problems = _table(columns, csv, config, config.test_image_dir or config.image_dir)
    return table, problems + table_problems


def overlap(train: Table, test: Table) -> list[Problem]:
    """Finds test rows that are training rows too, by file."""
    known = {path: row for row, path in enumerate(train.paths)}
    rows = [row for row, path in enumerate(test.paths) if path in known]
    what = "also a training image, so a score on it would mean nothing"
    remedy = f"take these rows out of {train.csv} or {test.csv}"
    return problem_for_rows(test.csv, rows, test.names, what, remedy)


def problem_for_rows(
    csv: Path, rows: Sequence[int] | np.ndarray, values: Sequence[str], what: str, remedy: str
) -> list[Problem]:
    """Makes one problem of all rows that share it, with the first few as examples.

    Args:
        csv: The file.
        rows: Positions of the rows, from 0.
        values: What to quote for each of the file's rows.
        what: What is wrong with them.
        remedy: What to do.
    """
    if not len(rows):
        return []
    examples = ", ".join(f"line {row + 2} ({values[row]!r})" for row in rows[:EXAMPLES])
    more = f" and {len(rows) - EXAMPLES} more" if len(rows) > EXAMPLES else ""
    return [Problem(str(csv), f"{len(rows)} row{'s' if len(rows) > 1 else ''} {what}: {examples}{more}", remedy)]


def _read_csv(csv: Path, wanted: list[str]) -> tuple[pd.DataFrame, list[Problem]]:
    """Reads every cell as the text it is; raises where no table can be made."""
    try:
        columns = pd.read_csv(csv, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except FileNotFoundError:
        raise UserError(
            f"{csv}: no such file. Put the competition's files there (input/README.md says how), or try the built-in "
            "sample: bash train.sh configs/quickstart.yaml"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{csv}: not UTF-8 text at byte {error.start}; save it as UTF-8") from None
    except pd.errors.EmptyDataError:
        raise UserError(f"{csv}: empty; it needs a header line with {', '.join(wanted)}") from None
    except pd.errors.ParserError as error:
        raise UserError(f"{csv}: not a comma-separated table: {str(error).strip()}") from None
    missing = [column for column in wanted if column not in columns]
    if missing:
        has = ", ".join(repr(str(column)) for column in columns)
        hint = "; separate the columns by commas, not semicolons" if ";" in has else ""
        keys = "data.image_column, data.label_column, data.group_column, data.fold_column"
        raise UserError(
            f"{csv}: no column {', '.join(map(repr, missing))}; it has {has}{hint} (names are set by {keys})"
        )
    if columns.empty:
        raise UserError(f"{csv}: a header but no rows")
    return columns, []


def _table(columns: pd.DataFrame, csv: Path, config: DataConfig, image_dir: Path) -> tuple[Table, list[Problem]]:
    names = columns[config.image_column].tolist()
    folder = config.root / image_dir
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder; data.root and data.image_dir say where it is")
    paths = [folder / (name + config.image_suffix) for name in names]

    def rows_where(wrong: list[bool]) -> list[int]:
        return [row for row, is_wrong in enumerate(wrong) if is_wrong]

    def report(wrong: list[bool], what: str, remedy: str) -> None:
        problems.extend(problem_for_rows(csv, rows_where(wrong), names, what, remedy))

    problems: list[Problem] = []
    empty = [not name.strip() for name in names]
    report(empty, "with an empty image name", "fill them in or take the rows out")
    padded = [name != name.strip() and bool(name.strip()) for name in names]
    report(padded, "with spaces around the image name", "take the spaces out")
    repeated = columns[config.image_column].duplicated().tolist()
    report(repeated, "with an image name that stands above already", "keep one row an image")
    root = os.path.realpath(folder)
    outside = [
        not blank and _leaves(root, name + config.image_suffix) for name, blank in zip(names, empty, strict=True)
    ]
    report(outside, f"with a path that leaves {folder}", "image names are paths below the image folder")
    skip = [a or b or c for a, b, c in zip(empty, padded, outside, strict=True)]
    missing = [not skipped and not path.is_file() for path, skipped in zip(paths, skip, strict=True)]
    suffix_hint = "" if config.image_suffix else ", or set data.image_suffix if the names lack it"
    report(missing, f"whose image is not in {folder}", f"get the files{suffix_hint}")
    return Table(csv, names, paths, columns), problems


def _leaves(root: str, name: str) -> bool:
    """Whether a name, links followed, is outside the image folder."""
    if "\0" in name:
        return True
    real = os.path.realpath(os.path.join(root, name))  # noqa: PTH118 - half the time of pathlib, on every row
    return not real.startswith(root + os.sep)


def _labels(columns: pd.DataFrame, csv: Path, config: DataConfig, folds: int | None) -> tuple[Labels, list[Problem]]:
    labels = columns[config.label_column]
    problems: list[Problem] = []
    empty = np.flatnonzero(labels.str.strip() == "")
    problems += problem_for_rows(csv, empty, labels.tolist(), "with an empty label", "label them or take them out")
    padded = np.flatnonzero((labels != labels.str.strip()) & (labels.str.strip() != ""))
    problems += problem_for_rows(csv, padded, labels.tolist(), "with spaces around the label", "take the spaces out")
    floats = np.flatnonzero(labels.str.fullmatch(r"-?\d+\.\d*") | labels.str.lower().isin(["nan", "none", "null"]))
    remedy = "write integer labels without a decimal point and leave no NaN"
    problems += problem_for_rows(csv, floats, labels.tolist(), "with a label that is a float or missing value", remedy)

    classes = sort_labels(labels.unique().tolist())
    if len(classes) < 2:
        problems.append(Problem(str(csv), f"all rows have the label {classes[0]!r}", "two classes at least are needed"))
    names = config.class_names or classes
    if len(names) != len(classes):
        what = f"data.class_names has {len(names)} names for {len(classes)} labels ({', '.join(classes[:10])})"
        problems.append(Problem(str(csv), what, "give one name a label, in this order"))
        names = classes
    counts = labels.value_counts()
    if folds and (few := [f"{label!r} ({counts[label]})" for label in classes if counts[label] < folds]):
        listed = ", ".join(few[:EXAMPLES]) + (f" and {len(few) - EXAMPLES} more" if len(few) > EXAMPLES else "")
        what = f"{len(few)} class{'es' if len(few) > 1 else ''} with fewer rows than the {folds} folds: {listed}"
        problems.append(Problem(str(csv), what, "lower data.folds, or merge or drop the rare classes"))
    position = {label: i for i, label in enumerate(classes)}
    return Labels(labels.map(position).to_numpy(np.int64, copy=True), classes, list(names)), problems


def sort_labels(labels: list[str]) -> list[str]:
    """Sorts labels: numerically if all are integers, else alphabetically."""
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
