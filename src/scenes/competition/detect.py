"""Infers what a competition is from its files alone: rows, images, labels, task, groups and a likely metric."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from scenes.competition.coco import IMAGE_KEYS
from scenes.competition.description import Line
from scenes.competition.find import split_suffix
from scenes.competition.infer_target import Target, find_target
from scenes.competition.inventory import Inventory, Source
from scenes.competition.path_pattern import as_expression
from scenes.console import UserError

SAMPLES = ("*sample*submission*", "*submission*sample*", "*sample_sub*", "*submission_format*")
FOUND = 0.9  # share of a column's names that must be images
GROUPS = re.compile(r"patient|subject|person|driver|location|(^|_)(group|scene|site|series|study|seq|sequence)(_|$)")
ROLES = {"train": ("train", "training", "seg_train"), "test": ("test", "testing", "seg_test")}


@dataclass
class Detected:
    """What was inferred.

    Attributes:
        lines: The keys of competition.yaml.
        summary: What each concept was taken to be, for people: (concept, what, from what).
        unknown: What the files do not say.
    """

    lines: list[Line] = field(default_factory=list)
    summary: list[tuple[str, str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any, why: str) -> None:
        """Adds a line."""
        self.lines.append(Line(key, value, why))

    @property
    def values(self) -> dict[str, Any]:
        """The values by dotted key."""
        return {line.key: line.value for line in self.lines}


@dataclass(frozen=True)
class Rows:
    """Training rows and how their images are found.

    Attributes:
        source: The rows.
        names: The column with the ids.
        target: What is to be predicted.
    """

    source: Source
    names: str
    target: Target


def detect(root: Path) -> Detected:
    """Infers the description of the competition in a folder.

    Raises:
        UserError: If there are no images, or no training rows can be found.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; put the competition's files there")
    files = Inventory(root)
    if not files.images:
        raise UserError(_no_images(root, files))
    found = Detected()
    sample = next((table for table in files.tables if any(fnmatch(table.stem, like) for like in SAMPLES)), None)
    rows = _train_rows(files, sample, found)
    if rows is None and not any(table.role == "train" for table in files.tables):
        rows = _pattern_rows(files, sample, found)
    if rows is None:
        listed = ", ".join(table.file for table in files.tables) or "no table"
        raise UserError(
            f"{root}: no training rows found in {listed} or in the images' paths; name them by data.train_csv, "
            "data.image_column, data.label_column and data.image_dir"
        )
    _test_rows(files, rows, sample, found)
    if sample and sample.file != "sample_submission.csv":
        found.set("data.sample_submission", sample.file, "the file of that kind")
    _describe_target(rows, found)
    _groups(rows, found)
    found.set(
        "symmetry", "mirror", "a guess: none for text or digits, all where up is anywhere (plants from above, cells)"
    )
    return found


def _no_images(root: Path, files: Inventory) -> str:
    """Why a folder without images is no competition for this repo."""
    wide = [table for table in files.tables if len(table.columns) > 100]
    if wide:
        return (
            f"{root}: no image files, but {wide[0].file} has {len(wide[0].columns)} columns: pixels in a CSV are not "
            "read; write each row as an image file, and a CSV with its name and label"
        )
    return f"{root}: no image files; unpack the archives there, or give the folder that holds them"


def _train_rows(files: Inventory, sample: Source | None, found: Detected) -> Rows | None:
    """The table whose rows are images with labels."""
    best: tuple[tuple[bool, int, int, int], Rows, str] | None = None
    for table in files.tables:
        if table is sample or table.role == "test":
            continue
        names, image = _name_columns(files, table, sample)
        if not image or not (target := find_target(table, names, sample, files)):
            continue
        order = ("train", "train_labels", "trainlabels", "labels")
        rank = next((at for at, stem in enumerate(order) if table.stem == stem), 9 - (table.role == "train"))
        score = (target.is_sure, -rank, -table.file.count("/"), len(table))
        if best is None or score > best[0]:
            best = score, Rows(table, names, target), image
    if best is None:
        return None
    _, rows, image = best
    table = rows.source
    if table.file != "train.csv":
        found.set("data.train_csv", table.file, f"{len(table)} rows with labels")
    _place_images(files, table, rows.names, image, found)
    found.summary.append(("rows", f"{table.file}, {len(table)} rows", f"the ids in {rows.names!r}"))
    return rows


def _name_columns(files: Inventory, table: Source, sample: Source | None) -> tuple[str, str | None]:
    """The columns of the ids and of the images' names; None for the second where none names images."""
    if not table.is_json and any(files.candidates(column) for column in table.columns):
        return "", None  # a row in place of the header
    shares = {column: _share(files, cells) for column, cells in table.columns.items()}
    asked = next(iter(sample.columns)) if sample else ""
    keys = [key for key in IMAGE_KEYS if key in table.columns] if table.is_json else []
    ids = asked if asked in table.columns and not table.is_json else next(iter(keys), "")
    if table.is_json and "file_name" in table.columns and shares["file_name"] >= FOUND:
        return ids, "file_name"
    if ids and shares[ids] >= FOUND:
        return ids, ids
    best = max(shares, key=lambda column: shares[column])
    if shares[best] >= FOUND:
        return ids or best, best
    first = ids or next(iter(table.columns))
    return first, (f"{{{first}}}" if len(files.variants(table.columns[first])) > 1 else None)


def _share(files: Inventory, cells: Sequence[str]) -> float:
    """How many of a column's cells are images' names; numbers that repeat are none."""
    tried = cells[:: max(1, len(cells) // 50)]
    if len(set(tried)) < len(tried) / 2:
        return 0.0
    return sum(bool(name.strip() and files.candidates(name)) for name in tried) / len(tried)


def _place_images(files: Inventory, table: Source, names: str, image: str, found: Detected) -> None:
    """Writes down where the training images are and how they are found."""
    column = names if image.startswith("{") else image
    cells = table.columns[column]
    if image.startswith("{"):
        ends = files.variants(cells)
        end = next((end for end in ends if end == "_green"), ends[0])
        found.set("data.image_pattern", f"{{{names}}}{end}", f"one of several files an id: {', '.join(ends)}")
        found.unknown.append(
            f"which of the files {', '.join(ends)} of an id to use; {end} is taken (data.image_pattern)"
        )
        cells = [f"{cell}{end}" for cell in cells]
    place = files.place(cells, "train")
    found.set("data.image_dir", place.folder, f"{place.share:.0%} of the names in {column!r} are there")
    found.set("data.image_column", column if not image.startswith("{") else names, "names the images")
    if names != column:
        found.set("data.id_column", names, "what a submission prints")
    if place.suffix and not image.startswith("{"):
        found.set("data.image_suffix", place.suffix, "the names lack it")
    found.summary.append(("images", f"{place.folder}/", f"{place.share:.0%} of the names in {column!r} are there"))


def _pattern_rows(files: Inventory, sample: Source | None, found: Detected) -> Rows | None:
    """Rows whose labels are in the images' paths: in a folder for each class, or before a number in the name."""
    train = [image for image in files.images if image.split("/")[0].lower() in ROLES["train"]]
    images = train or [image for image in files.images if image.split("/")[0].lower() not in ROLES["test"]]
    name = next(iter(sample.columns)) if sample else "image"
    for pattern in _patterns(images):
        expression = re.compile(as_expression(pattern))
        matches = [match for image in images if (match := expression.fullmatch(image))]
        labels = [match["label"] for match in matches]
        if "{number}" in pattern and all(map(str.isdigit, labels)):
            continue
        if len(matches) >= FOUND * len(images) and 2 <= len(set(labels)) <= len(labels) / 2:
            why = f"{len(matches)} images, {len(set(labels))} labels in their paths"
            found.set("data.train_csv", pattern, why)
            found.set("data.image_column", name, "the sample's id" if sample else "any name")
            found.summary.append(("rows", pattern, why))
            columns = {"label": labels, name: [match.string for match in matches]}
            return Rows(Source(pattern, columns), name, Target.of_classes("label", labels, sample))
    return None


def _patterns(images: Sequence[str]) -> list[str]:
    """Patterns that could be those of the images' paths."""
    patterns = []
    for folder in sorted({"/".join(image.split("/")[:-1]) for image in images}):
        above = "/".join(folder.split("/")[:-1])
        patterns.append(f"{above}/{{label}}/{{file}}".lstrip("/") if folder else "")
        suffixes = Counter(split_suffix(image)[1] for image in images if image.startswith(folder))
        suffix = suffixes.most_common(1)[0][0]
        patterns += [f"{folder}/{{label}}{sign}{{number}}{suffix}".lstrip("/") for sign in (".", "_", "-", "")]
    return list(dict.fromkeys(filter(None, patterns)))[:500]


def _test_rows(files: Inventory, rows: Rows, sample: Source | None, found: Detected) -> None:
    """Finds the test rows: a test table, else the sample submission, else a folder of test images."""
    values = found.values
    tables = [table for table in files.tables if table.role == "test" and table is not sample]
    column = str(values.get("data.id_column", values["data.image_column"]))
    named = [table for table in tables if column in table.columns and not _is_answers(table, rows, sample)]
    if named:
        table = named[0]
        image = values["data.image_column"]
        cells = table.columns[image if image in table.columns else column]
        if table.file != "test.csv":
            found.set("data.test_csv", table.file, f"{len(table)} rows without labels")
    elif sample:
        table, cells = sample, next(iter(sample.columns.values()))
        found.set("data.test_csv", sample.file, "no other list of the test images")
    else:
        folder = next(
            (image.split("/")[0] for image in files.images if image.split("/")[0].lower() in ROLES["test"]), ""
        )
        if not folder:
            found.unknown.append("the test images: there is no test table, no sample submission and no test folder")
            return
        found.set("data.test_csv", f"{folder}/{{file}}", "no list of the test images, so all in that folder")
        found.summary.append(("test rows", f"{folder}/", "no list of them"))
        return
    if pattern := values.get("data.image_pattern"):
        cells = [cell + str(pattern).rpartition("}")[2] for cell in cells]
    place = files.place(cells, "test")
    if place.share < FOUND:
        found.unknown.append(f"where the test images are: {place.share:.0%} of {table.file}'s are in {place.folder}")
    if place.folder != values.get("data.image_dir"):
        found.set("data.test_image_dir", place.folder, f"{place.share:.0%} of {table.file}'s images are there")
    if place.suffix and "data.image_suffix" not in values and not pattern:
        found.set("data.image_suffix", place.suffix, f"{table.file}'s names lack it")
    found.summary.append(("test rows", f"{table.file}, {len(table)} rows", f"images in {place.folder}/"))


def _is_answers(table: Source, rows: Rows, sample: Source | None) -> bool:
    """Whether a table holds test labels, which are no test rows where there is a sample."""
    return sample is not None and all(column in table.columns for column in rows.target.columns) and not table.is_json


def _describe_target(rows: Rows, found: Detected) -> None:
    """Writes down the labels, the task and the metric."""
    target = rows.target
    if len(target.columns) > 1:
        found.set("data.label_columns", target.columns, target.why)
    elif target.columns != ["label"] or not rows.source.file.endswith(".csv"):
        found.set("data.label_column", target.columns[0], target.why)
    if target.separator:
        found.set("data.label_separator", target.separator, "separates the labels of a cell")
    if target.names:
        found.set("data.class_names", target.names, "for people to read")
    found.set("task", target.task, target.task_why)
    found.set("metric", target.metric, f"a guess for {target.metric_why}; say the competition's own")
    found.summary.append(
        ("labels", ", ".join(target.columns[:6]) + (", …" if len(target.columns) > 6 else ""), target.why)
    )
    found.summary.append(("task", target.task, target.task_why))
    found.summary.append(("metric", f"{target.metric} (a guess)", target.metric_why))
    found.unknown.append(f"the metric: {target.metric} is a guess for {target.metric_why}; --set metric=…")
    found.unknown.extend(target.unknown)


def _groups(rows: Rows, found: Detected) -> None:
    """Takes a column such as a patient's for groups, where its values repeat and no class is in one group alone."""
    taken = {*rows.target.columns, found.values["data.image_column"]}
    for column, cells in rows.source.columns.items():
        is_group = column not in taken and GROUPS.search(column.lower()) and all(cells)
        if not is_group or not 5 <= len(set(cells)) < len(cells):
            continue
        if _has_lonely_class(rows, cells):
            note = f"whether rows of one {column!r} must share a fold: some classes are in one of them only"
            found.unknown.append(f"{note} (data.group_column)")
            continue
        why = f"{len(set(cells))} values in {len(cells)} rows: rows of one share a fold"
        found.set("data.group_column", column, why)
        found.summary.append(("groups", column, why))
        return


def _has_lonely_class(rows: Rows, groups: Sequence[str]) -> bool:
    """Whether all rows of some class are in one group."""
    target = rows.target
    if target.task != "classes" or len(target.columns) > 1:
        return False
    within: dict[str, set[str]] = {}
    for label, group in zip(rows.source.columns[target.columns[0]], groups, strict=True):
        within.setdefault(label, set()).add(group)
    return any(len(found) == 1 for found in within.values())
