"""Reads a competition's training and test rows, each with its id and its image file, and lists all problems."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scenes.competition.coco import read_json
from scenes.competition.csv_file import read_cells, read_columns
from scenes.competition.decisions import decision_problems
from scenes.competition.find import Finder, Found
from scenes.competition.path_pattern import FIELD, is_pattern, pattern_folder, read_pattern
from scenes.competition.table import EXAMPLES, problem_for_rows, some
from scenes.competition.table import Table as Table
from scenes.competition.table import bad_image_rows as bad_image_rows
from scenes.competition.targets import Targets, read_targets, task_kind
from scenes.competition.task import Classes, Task
from scenes.config import Config, DataConfig
from scenes.console import Problem, UserError

SAMPLES = "*sample*submission*.csv"  # in lower case


def read_train_rows(data: DataConfig) -> tuple[Table, list[Problem]]:
    """Reads the training rows, without interpreting their labels.

    Args:
        data: The config's data section.

    Returns:
        The rows and what is wrong with them; a missing image is not a problem under ``data.on_bad_image: skip`` or for
        a row in ``data.drop``.

    Raises:
        UserError: If there is nothing to read.
    """
    labels = data.label_columns or [data.label_column]
    extra = [column for column in (data.group_column, data.fold_column) if column]
    names = [data.image_column] if data.train_csv.suffix == ".csv" and not data.image_pattern else [_id_column(data)]
    wanted = list(dict.fromkeys([*names, *labels, *extra]))
    folder, columns, problems = _read_columns(data, data.train_csv, data.image_dir, wanted)
    keys, finder = _image_keys(columns, data, is_test=False), Finder(folder, _suffix(data, data.train_csv))
    paths, found = _find_images(keys, finder)
    # An id may be in the test table only.
    ids = columns[_id_column(data) if _id_column(data) in columns else data.image_column].tolist()
    names = ids if len(set(ids)) == len(ids) else keys  # a pattern can tell apart images with the same name
    table = Table(data.root / data.train_csv, names, paths, columns)
    problems += _id_problems(table, keys, found, is_test=False)
    exempt = None if data.on_bad_image == "skip" else set(data.drop)
    problems += _image_problems(table, keys, found, finder, exempt)
    if data.group_column:
        empty = np.flatnonzero([not group.strip() for group in columns[data.group_column]])
        problems += problem_for_rows(table, empty, table.names, "with an empty group", "give each row a group")
    return table, problems


def read_test(data: DataConfig, may_lack_images: bool = False) -> tuple[Table, list[Problem]]:
    """Reads the test rows from `data.test_csv` or, if there is none, from the sample submission.

    Args:
        data: The config's data section.
        may_lack_images: Whether images may be missing.

    Returns:
        The rows, several of which may share an id, and what is wrong with them.

    Raises:
        UserError: If there is nothing to read.
    """
    source = test_source(data) or data.test_csv
    image_dir = data.test_image_dir or data.image_dir
    column = _id_column(data)
    if data.root / source == sample_file(data):
        column = id_column((read_cells(data.root / source, 1)[1] or [[column]])[0], data)
    folder, columns, problems = _read_columns(data, source, image_dir, [column])
    keys = _image_keys(columns, data, is_test=True) if column == _id_column(data) else columns[column].tolist()
    finder = Finder(folder, _suffix(data, source))
    paths, found = _find_images(keys, finder)
    table = Table(data.root / source, columns[column].tolist(), paths, columns)
    problems += _id_problems(table, keys, found, is_test=True)
    return table, problems + _image_problems(table, keys, found, finder, None if may_lack_images else ())


def test_source(data: DataConfig) -> Path | None:
    """The file with the test rows, relative to data.root; None if there is none.

    It is `data.test_csv` or, if that is not set and its default is missing, the sample submission.
    """
    is_default = data.test_csv == DataConfig.model_fields["test_csv"].default
    if not is_default or os.path.lexists(data.root / data.test_csv):
        return data.test_csv
    sample = sample_file(data)
    return sample.relative_to(data.root) if sample and sample.is_relative_to(data.root) else sample


def sample_file(data: DataConfig) -> Path | None:
    """The sample submission: `data.sample_submission`, else the one file in data.root with such a name.

    Raises:
        UserError: If the file that the config names is missing.
    """
    named = data.root / data.sample_submission
    if named.exists():
        return named
    if data.sample_submission != DataConfig.model_fields["sample_submission"].default:
        raise UserError(f"data.sample_submission: no file at {named}")
    try:
        found = sorted(file for file in data.root.iterdir() if Path(file.name.lower()).match(SAMPLES))
    except OSError:
        return None
    return found[0] if len(found) == 1 else None


def overlap(train: Table, test: Table) -> list[Problem]:
    """Finds test rows that are also training rows, by file."""
    known = set(train.paths)
    rows = [row for row, path in enumerate(test.paths) if path in known]
    what = "also a training image, so a score on it would mean nothing"
    remedy = f"remove these rows from {train.file} or {test.file}"
    return problem_for_rows(test, rows, test.names, what, remedy)


def id_column(header: Sequence[str], data: DataConfig) -> str:
    """The column of a sample submission with the ids: `data.id_column` if it has that, else the first one."""
    return data.id_column if data.id_column and data.id_column in header else header[0]


def _id_column(data: DataConfig) -> str:
    return data.id_column or data.image_column


def _suffix(data: DataConfig, source: Path) -> str:
    """The suffix that names lack; those read from paths are complete."""
    return "" if is_pattern(source) else data.image_suffix


def _read_columns(
    data: DataConfig, source: Path, image_dir: Path, wanted: list[str]
) -> tuple[Path, pd.DataFrame, list[Problem]]:
    """Reads rows as text columns from a CSV, a JSON file or paths; the folder of their images comes first."""
    file = data.root / source
    if is_pattern(source):
        columns = read_pattern(data.root, source.as_posix(), _id_column(data))
        if missing := [column for column in wanted if column not in columns]:
            has = f"{source} has the fields {some(FIELD.findall(str(source)))}"
            raise UserError(f"no field {{{missing[0]}}} in the pattern of data.train_csv; {has}")
        return image_folder(data, source, image_dir), columns, []
    read = read_json(file, wanted, data.label_separator) if source.suffix == ".json" else read_columns(file, wanted)
    return image_folder(data, source, image_dir), *read


def image_folder(data: DataConfig, source: Path, image_dir: Path) -> Path:
    """Where the images of rows are: below the fixed part of a pattern of paths, else in `image_dir`."""
    return data.root / (pattern_folder(source.as_posix()) if is_pattern(source) else image_dir)


def _image_keys(columns: pd.DataFrame, data: DataConfig, is_test: bool) -> list[str]:
    """The keys to find the rows' images by: the pattern over columns, the image column, else the id."""
    fields = FIELD.findall(data.image_pattern or "")
    if missing := [field for field in fields if field not in columns]:
        if not is_test:
            has = some(columns.columns.tolist())
            raise UserError(f"data.image_pattern: no column {', '.join(map(repr, missing))}; the rows have {has}")
    elif fields:
        cells = columns[fields].to_dict("records")
        return [FIELD.sub(lambda field: row[field[1]], data.image_pattern or "") for row in cells]  # noqa: B023
    return columns[data.image_column if data.image_column in columns else _id_column(data)].tolist()


def _find_images(keys: Sequence[str], finder: Finder) -> tuple[list[Path], list[Found | None]]:
    """Finds each row's image by its key.

    Returns:
        The paths, or where the images were expected; and what was found, None for keys that are not searched for.
    """
    searchable = os.path.isdir(finder.folder)  # noqa: PTH112 - pathlib raises for a name that is too long
    found = [finder.find(key) if searchable and key.strip() and not finder.leaves(key) else None for key in keys]
    paths = [each.path if each else finder.folder / key for key, each in zip(keys, found, strict=True)]
    return paths, found


def _image_problems(
    table: Table, keys: Sequence[str], found: Sequence[Found | None], finder: Finder, exempt: Collection[str] | None
) -> list[Problem]:
    """Finds the rows without an image, or with several; `exempt` are ids that need none, None for all."""
    if not os.path.isdir(finder.folder):  # noqa: PTH112 - as above
        return [Problem(str(finder.folder), "no such image folder", "data.root and data.image_dir say where it is")]
    escaping = [row for row, key in enumerate(keys) if key.strip() and finder.leaves(key)]
    what, remedy = f"with a path that leaves {finder.folder}", "image names are paths below the image folder"
    problems = problem_for_rows(table, escaping, keys, what, remedy)
    files = [each.files if each else [] for each in found]
    several = [row for row, names in enumerate(files) if len(names) > 1]
    shown = [f"{key}: {' or '.join(names[:3])}" for key, names in zip(keys, files, strict=True)]
    remedy = "set data.image_dir, data.image_suffix or data.image_pattern so that one file fits"
    problems += problem_for_rows(table, several, shown, f"with several images in {finder.folder}", remedy)
    if exempt is not None:
        missing = [row for row, each in enumerate(found) if each and not each.files and table.names[row] not in exempt]
        remedy = _remedy_for_missing(finder, [keys[row] for row in missing[:EXAMPLES]])
        problems += problem_for_rows(table, missing, keys, f"whose image is not in {finder.folder}", remedy)
    return problems


def _id_problems(table: Table, keys: Sequence[str], found: Sequence[Found | None], is_test: bool) -> list[Problem]:
    """Finds rows without an id, training rows that share an id or an image, and test rows that share both."""
    names, rows = table.names, range(len(table))
    empty = {row for row in rows if not names[row].strip() or not keys[row].strip()}
    repeated = _repeated(list(zip(names, table.paths, strict=True)) if is_test else names) - empty
    remedy = "keep one row per image"
    problems = problem_for_rows(table, sorted(empty), names, "with an empty image name", "fill it in or drop the row")
    problems += problem_for_rows(table, sorted(repeated), names, "with a duplicate image name", remedy)
    if not is_test:
        has_file = {row for row, each in enumerate(found) if each and each.files}
        shared = (_repeated(table.paths) - repeated) & has_file
        shown = [f"{name}: {path.name}" for name, path in zip(names, table.paths, strict=True)]
        what = "with the image of an earlier row under another name"
        problems += problem_for_rows(table, sorted(shared), shown, what, remedy)
    return problems


def _repeated(values: Sequence[object]) -> set[int]:
    """Positions of the values that occurred before."""
    first: dict[object, int] = {}
    return {at for at, value in enumerate(values) if first.setdefault(value, at) != at}


def _remedy_for_missing(finder: Finder, keys: Sequence[str]) -> str:
    """Says what to do about names without a file, naming the nearest files."""
    near = {key: file for key in keys if (file := finder.nearest(key))}
    if near:
        return "the nearest files: " + ", ".join(f"{file!r} for {key[:80]!r}" for key, file in near.items())
    return "get the files" + ("" if finder.suffix else ", or set data.image_suffix if the names lack it")


def read_train(config: Config) -> tuple[Table, Targets, list[Problem]]:
    """Reads the training rows and their targets.

    Returns:
        The rows, their targets, and all problems with rows, labels and the decisions about them.

    Raises:
        UserError: If there is nothing to read.
    """
    table, problems = read_train_rows(config.data)
    targets = read_targets(table, config.data, task_kind(config))
    problems += targets.problems + decision_problems(table, class_labels(targets.task), config.data)
    return table, targets, problems


def class_labels(task: Task | None) -> list[str]:
    """The labels of a task's classes; empty for a task without classes."""
    return task.columns if isinstance(task, Classes) else []
