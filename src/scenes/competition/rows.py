"""The competition's CSVs: read strictly into tables, with a list of everything that is wrong."""

import csv
import difflib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from scenes.config import DataConfig
from scenes.console import Problem, UserError, raise_problems

EXAMPLES = 5
COLUMN_KEYS = "names are set by data.image_column, data.label_column, data.group_column, data.fold_column"


@dataclass(frozen=True)
class Table:
    """The rows of one CSV.

    Attributes:
        csv: Where they were read.
        names: Image names as the CSV has them, n strings.
        paths: The image files, n paths.
        columns: All columns as strings, n rows; the index is the line each row begins on.
    """

    csv: Path
    names: list[str]
    paths: list[Path]
    columns: pd.DataFrame

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> "Table":
        """The same table with these rows only."""
        names, paths = [self.names[row] for row in rows], [self.paths[row] for row in rows]
        return Table(self.csv, names, paths, self.columns.iloc[list(rows)])


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
        The table, the labels and what is wrong with them, most basic first; under ``data.on_bad_image: skip``, and of a
        row in ``data.drop``, a missing image is nothing wrong.

    Raises:
        UserError: If there is nothing to read.
    """
    wanted = [config.image_column, config.label_column]
    wanted += [column for column in (config.group_column, config.fold_column) if column]
    may_lack = config.on_bad_image == "skip"
    table, problems = _read_table(
        config.root / config.train_csv, wanted, config, config.image_dir, may_lack, set(config.drop)
    )
    labels, label_problems = read_labels(table, config, folds)
    problems += label_problems
    if config.group_column:
        groups = table.columns[config.group_column].tolist()
        empty = [row for row, group in enumerate(groups) if not group.strip()]
        problems += problem_for_rows(table, empty, table.names, "with an empty group", "give each row a group")
    return table, labels, problems + _decision_problems(table, labels, config)


def _decision_problems(table: Table, labels: Labels, config: DataConfig) -> list[Problem]:
    """Finds what is wrong with data.drop and data.relabel, the decisions about single rows."""
    problems: list[Problem] = []

    def report(key: str, wrong: Iterable[str], what: str, known: Sequence[str], otherwise: str) -> None:
        if found := list(dict.fromkeys(wrong)):
            near = [match for name in found[:EXAMPLES] for match in difflib.get_close_matches(name, known, 1, 0.5)]
            listed = ", ".join(f"{name[:80]!r}" for name in found[:EXAMPLES])
            more = f" and {len(found) - EXAMPLES} more" if len(found) > EXAMPLES else ""
            remedy = f"did you mean {', '.join(map(repr, dict.fromkeys(near)))}?" if near else otherwise
            problems.append(Problem(key, f"{what}: {listed}{more}", remedy))

    names, dropped = set(table.names), Counter(config.drop)
    stray = f"names are as in the column {config.image_column!r}"
    for key, listed in (("data.drop", config.drop), ("data.relabel", config.relabel)):
        report(key, (name for name in listed if name not in names), f"not in {table.csv}", table.names, stray)
    strange = (label for label in config.relabel.values() if label not in labels.classes)
    report("data.relabel", strange, "unknown label", labels.classes, f"labels are {', '.join(labels.classes[:20])}")
    report("data.drop", (name for name in dropped if dropped[name] > 1), "named twice", [], "name it once")
    both = (name for name in config.relabel if name in dropped)
    report("data.relabel", both, "also in data.drop", [], "take it out of one of them")
    return problems


def decide(table: Table, labels: Labels, config: DataConfig) -> tuple[list[int], Labels]:
    """Applies data.drop and data.relabel.

    To be called once the folds are dealt: by all rows and the CSV's own labels, so that no decision about one row moves
    another to another fold, and runs with and without decisions can be compared row by row.

    Args:
        table: The training rows, checked by `read_train`.
        labels: Theirs.
        config: The config's data section.

    Returns:
        The rows that stay, and the labels of these.

    Raises:
        UserError: If a class has no row left.
    """
    dropped, place = set(config.drop), {label: at for at, label in enumerate(labels.classes)}
    kept = [row for row, name in enumerate(table.names) if name not in dropped]
    given = (config.relabel.get(table.names[row]) for row in kept)
    targets = [labels.targets[row] if label is None else place[label] for row, label in zip(kept, given, strict=True)]
    counts = np.bincount(np.array(targets, np.int64), minlength=len(labels.classes))
    what, remedy = "leaves the class {!r} without a row", "keep some of its rows"
    gone = [label for label, count in zip(labels.classes, counts, strict=True) if not count]
    raise_problems([Problem("data.drop, data.relabel", what.format(label), remedy) for label in gone])
    return kept, Labels(np.array(targets, np.int64), labels.classes, labels.class_names)


def read_test(config: DataConfig, may_lack_images: bool = False) -> tuple[Table, list[Problem]]:
    """Reads the test CSV.

    Args:
        config: The config's data section.
        may_lack_images: Whether a missing image is nothing wrong.

    Raises:
        UserError: If there is nothing to read.
    """
    image_dir = config.test_image_dir or config.image_dir
    return _read_table(config.root / config.test_csv, [config.image_column], config, image_dir, may_lack_images)


def read_near_duplicates(file: Path, names: Sequence[str], left_out: Collection[str]) -> np.ndarray:
    """Reads groups of training images that show nearly the same.

    Args:
        file: Columns ``image_name`` and ``group``, as check.py writes them.
        names: The n training images.
        left_out: Training images that may be in the file but count no more.

    Returns:
        int64, shape (n,): equal for rows of one group; a row in no group has a number of its own.

    Raises:
        UserError: With the list of all that is wrong.
    """
    if not file.is_file():
        raise UserError(f"data.near_duplicates: no file at {file}; python src/check.py CONFIG writes it")
    columns, problems = read_columns(file, ["image_name", "group"], "python src/check.py CONFIG writes it")
    listed, groups = columns["image_name"].tolist(), columns["group"].tolist()
    table = Table(file, listed, [], columns)
    known, repeated = {*names, *left_out}, columns["image_name"].duplicated()
    for wrong, what, remedy in (
        ([name not in known for name in listed], "with an image that is not a training image", "run check.py again"),
        (repeated, "with an image that stands above already", "keep one row an image"),
        ([not group.strip() for group in groups], "with an empty group", "give each row a group"),
    ):
        problems += problem_for_rows(table, np.flatnonzero(wrong), listed, what, remedy)
    raise_problems(problems)
    group_of = dict(zip(listed, pd.factorize(columns["group"])[0], strict=True))
    return np.array([group_of.get(name, -1 - row) for row, name in enumerate(names)], np.int64)


def overlap(train: Table, test: Table) -> list[Problem]:
    """Finds test rows that are training rows too, by file."""
    known = set(train.paths)
    rows = [row for row, path in enumerate(test.paths) if path in known]
    what = "also a training image, so a score on it would mean nothing"
    remedy = f"take these rows out of {train.csv} or {test.csv}"
    return problem_for_rows(test, rows, test.names, what, remedy)


def problem_for_rows(
    table: Table, rows: Sequence[int] | np.ndarray, values: Sequence[str], what: str, remedy: str
) -> list[Problem]:
    """Makes one problem of all rows that share it, with the first few as examples.

    Args:
        table: What the rows are of.
        rows: Positions of the wrong rows, from 0.
        values: What to quote, for each row of the table.
        what: What is wrong with them.
        remedy: What to do.
    """
    lines = table.columns.index
    return _problem(table.csv, [(lines[row], values[row]) for row in rows], what, remedy)


def bad_image_rows(table: Table, reasons: Mapping[int, str], what: str) -> str:
    """Says in one line which rows' images cannot be read, with the first few as examples.

    Args:
        table: What the rows are of.
        reasons: What is wrong, by row.
        what: What becomes of them.
    """
    lines = table.columns.index
    return f"{table.csv}: " + _rows([(lines[row], f"{table.names[row]}: {why}") for row, why in reasons.items()], what)


def _problem(file: Path, found: list[tuple[int, str]], what: str, remedy: str) -> list[Problem]:
    return [Problem(str(file), _rows(found, what), remedy)] if found else []


def _rows(found: list[tuple[int, str]], what: str) -> str:
    examples = ", ".join(f"line {line} ({value[:80]!r})" for line, value in found[:EXAMPLES])
    more = f" and {len(found) - EXAMPLES} more" if len(found) > EXAMPLES else ""
    return f"{len(found)} row{'s' if len(found) > 1 else ''} {what}: {examples}{more}"


def _read_table(
    file: Path,
    wanted: list[str],
    config: DataConfig,
    image_dir: Path,
    may_lack_images: bool,
    dropped: Collection[str] = (),
) -> tuple[Table, list[Problem]]:
    columns, problems = read_columns(file, wanted)
    names = columns[config.image_column].tolist()
    folder = config.root / image_dir
    paths = [folder / _on_disk(name + config.image_suffix) for name in names]
    table = Table(file, names, paths, columns)
    return table, problems + _name_problems(table, folder, config.image_suffix, may_lack_images, dropped)


def read_columns(file: Path, wanted: list[str], origin: str = COLUMN_KEYS) -> tuple[pd.DataFrame, list[Problem]]:
    """Reads a CSV as text; the index is the line each row begins on. `origin` says what decides the columns."""
    lines, rows = _read_csv(file, wanted)
    header, *rows = rows
    _check_header(file, header, wanted, origin)
    fits = [len(cells) == len(header) for cells in rows]
    ragged = [(line, ",".join(cells)) for line, cells, fit in zip(lines[1:], rows, fits, strict=True) if not fit]
    remedy = "put quotes around cells that hold commas"
    problems = _problem(file, ragged, f"with another number of cells than the header's {len(header)}", remedy)
    kept = [row for row, fit in enumerate(fits) if fit]
    if not kept:
        raise_problems(problems or [Problem(str(file), "a header but no rows")])
    index = [lines[row + 1] for row in kept]
    return pd.DataFrame([rows[row] for row in kept], index=index, columns=header, dtype=str), problems


def _read_csv(file: Path, wanted: list[str]) -> tuple[list[int], list[list[str]]]:
    """Reads every cell as the text it is: the line on which each row begins, and the rows, the header first.

    Not with pandas, which cuts rows that are too long and fills up those that are too short.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such file. Put the competition's files there (input/README.md says how), or try the built-in "
            "sample: bash train.sh configs/quickstart.yaml"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: not UTF-8 text; save it as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines, rows, begins = [], [], 1
    try:
        for cells in reader:
            if cells:
                lines.append(begins)
                rows.append(cells)
            begins = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{file}, line {begins}: not a comma-separated table: {error}") from None
    if not rows:
        raise UserError(f"{file}: empty; it needs a header line with {', '.join(wanted)}")
    return lines, rows


def _check_header(file: Path, header: list[str], wanted: list[str], origin: str) -> None:
    if missing := [column for column in wanted if column not in header]:
        wrong = [name for sign, name in ((";", "semicolons"), ("\t", "tabs")) if sign in "".join(header)]
        hint = f"; separate the columns by commas, not {wrong[0]}" if wrong else ""
        has = ", ".join(map(repr, header))
        raise UserError(f"{file}: no column {', '.join(map(repr, missing))}; it has {has}{hint} ({origin})")
    if repeated := [column for column in wanted if header.count(column) > 1]:
        raise UserError(f"{file}: several columns {', '.join(map(repr, repeated))}; rename all but one")


def _name_problems(
    table: Table, folder: Path, suffix: str, may_lack_images: bool, dropped: Collection[str]
) -> list[Problem]:
    problems: list[Problem] = []

    def report(wrong: Callable[[int, str], bool], what: str, remedy: str) -> set[int]:
        rows = [row for row, name in enumerate(table.names) if wrong(row, name)]
        problems.extend(problem_for_rows(table, rows, table.names, what, remedy))
        return set(rows)

    skip = report(lambda _, name: not name.strip(), "with an empty image name", "fill them in or take the rows out")
    skip |= report(
        lambda _, name: name != name.strip() != "", "with spaces around the image name", "take the spaces out"
    )
    repeated = pd.Series(table.names).duplicated().tolist()
    report(
        lambda row, _: repeated[row] and row not in skip,
        "with an image name that stands above already",
        "keep one row an image",
    )
    if not os.path.isdir(folder):  # noqa: PTH112 - false where pathlib raises, e.g. for a name that is too long
        return [*problems, Problem(str(folder), "no such image folder", "data.root and data.image_dir say where it is")]
    root = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118
    real_folder = cache(os.path.realpath)  # of few folders and many files
    skip |= report(
        lambda row, name: row not in skip and _leaves(root, _on_disk(name + suffix), real_folder),
        f"with a path that leaves {folder}",
        "image names are paths below the image folder",
    )
    if may_lack_images:
        return problems
    skip |= {row for row, name in enumerate(table.names) if name in dropped}
    hint = "" if suffix else ", or set data.image_suffix if the names lack it"
    report(
        lambda row, _: row not in skip and not os.path.isfile(table.paths[row]),  # noqa: PTH113 - as above
        f"whose image is not in {folder}",
        f"get the files{hint}",
    )
    return problems


def _on_disk(name: str) -> str:
    """The file name that is this text in UTF-8, which is another where Python takes file names for ASCII."""
    return os.fsdecode(name.encode(errors="surrogateescape"))


def _leaves(root: str, name: str, real_folder: Callable[[str], str]) -> bool:
    """Whether a name, links followed, is outside the image folder; by os.path, which takes half of pathlib's time."""
    if "\0" in name:
        return True
    folder, file = os.path.split(os.path.join(root, name))  # noqa: PTH118
    path = os.path.join(real_folder(folder), file)  # noqa: PTH118
    if file in ("", ".", "..") or os.path.islink(path):  # noqa: PTH114
        path = os.path.realpath(path)
    return not path.startswith(root)


def read_labels(table: Table, config: DataConfig, folds: int | None) -> tuple[Labels, list[Problem]]:
    """Makes a training table's labels into targets and classes; arguments as `read_train`'s."""
    labels = table.columns[config.label_column].tolist()
    problems: list[Problem] = []
    sound = Counter(labels)
    for is_wrong, what, remedy in (
        (lambda label: not label.strip(), "with an empty label", "label them or take them out"),
        (lambda label: label != label.strip() != "", "with spaces around the label", "take the spaces out"),
        (
            re.compile(r"[-+]?(\d+\.\d*|\.\d+)(e[-+]?\d+)?|nan|none|null", re.IGNORECASE).fullmatch,
            "with a label that is a float or missing value",
            "write integer labels without a decimal point and leave no NaN",
        ),
    ):
        wrong = {label for label in sound if is_wrong(label)}
        rows = [row for row, label in enumerate(labels) if label in wrong]
        problems += problem_for_rows(table, rows, labels, what, remedy)
        sound = Counter({label: count for label, count in sound.items() if label not in wrong})

    classes = sort_labels(list(sound))
    problems += _class_problems(table.csv, classes, sound, config.class_names, folds)
    position = {label: i for i, label in enumerate(classes)}
    targets = np.array([position.get(label, -1) for label in labels], np.int64)
    return Labels(targets, classes, list(config.class_names or classes)), problems


def _class_problems(
    file: Path, classes: list[str], counts: Counter[str], names: list[str] | None, folds: int | None
) -> list[Problem]:
    problems = []
    if len(classes) == 1:
        what = f"all rows have the label {classes[0]!r}"
        problems.append(Problem(str(file), what, "two classes at least are needed"))
    if classes and names and len(names) != len(classes):
        what = f"data.class_names has {len(names)} names for {len(classes)} labels ({', '.join(classes[:10])})"
        problems.append(Problem(str(file), what, "give one name a label, in this order"))
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        what = f"data.class_names has {', '.join(map(repr, repeated))} more than once"
        problems.append(Problem(str(file), what, "give each class its own name"))
    if folds and (few := [f"{label!r} ({counts[label]})" for label in classes if counts[label] < folds]):
        listed = ", ".join(few[:EXAMPLES]) + (f" and {len(few) - EXAMPLES} more" if len(few) > EXAMPLES else "")
        what = f"{len(few)} class{'es' if len(few) > 1 else ''} with fewer rows than the {folds} folds: {listed}"
        problems.append(Problem(str(file), what, "lower data.folds, or merge or drop the rare classes"))
    return problems


def sort_labels(labels: list[str]) -> list[str]:
    """Sorts labels: numerically if all are integers, else alphabetically."""
    if all(re.fullmatch(r"-?\d{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
