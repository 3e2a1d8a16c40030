"""Infers where a competition's training and test rows are, and how their images are found."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os.path import commonpath
from typing import Any

from scenes.competition.coco import IMAGE_KEYS
from scenes.competition.description import Line
from scenes.competition.find import split_suffix
from scenes.competition.infer_target import Target, find_target
from scenes.competition.inventory import Inventory, Source
from scenes.competition.path_pattern import as_expression
from scenes.competition.table import column_of

FOUND = 0.9  # share of a column's names that must be images
FEW_FOLDERS = 4  # with more image folders than this, labels are not looked for in file names


@dataclass
class Detected:
    """What was inferred.

    Attributes:
        lines: The keys of competition.yaml.
        summary: What each concept was taken to be, for display: (concept, what, from what).
        unknown: What the files do not say.
    """

    lines: list[Line] = field(default_factory=list)
    summary: list[tuple[str, str, str]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any, why: str) -> None:
        """Adds a line, in place of an earlier one with this key."""
        self.lines = [*(line for line in self.lines if line.key != key), Line(key, value, why)]

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


def table_rows(files: Inventory, sample: Source | None, found: Detected) -> Rows | None:
    """Finds the table whose rows are images with labels."""
    best: tuple[tuple[bool, int, int, int], Rows, str] | None = None
    for table in files.tables:
        if table.is_sample or table.role == "test":
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
    keys = table.cells([name for name in (rows.names, image) if name in table.columns])
    if not table.is_json and (repeated := len(keys) - len(set(keys))):
        found.unknown.append(
            f"what several rows of an image mean: {table.file} has {len(keys)} rows for {len(keys) - repeated} images "
            "(boxes, masks, a row per label?); training needs one row per image"
        )
    return rows


def sample_ids(files: Inventory, sample: Source) -> str:
    """The column of a sample submission with the ids: the first one, unless only another names images."""
    first, *others = sample.columns
    if _share(files, sample.columns[first]) >= FOUND:
        return first
    return next((column for column in others if _share(files, sample.columns[column]) >= FOUND), first)


def lists_images(files: Inventory, table: Source) -> bool:
    """Whether a table that is not about test images names most of the images."""
    if table.is_sample or table.role == "test" or 2 * len(table) < len(files.images):
        return False
    return any(_share(files, cells) >= FOUND for cells in table.columns.values())


def _name_columns(files: Inventory, table: Source, sample: Source | None) -> tuple[str, str | None]:
    """The columns of the ids and of the image names; None for the second if none names images."""
    shares = {column: _share(files, cells) for column, cells in table.columns.items()}
    if not table.is_json and any(files.candidates(column) and shares[column] >= FOUND for column in table.columns):
        return "", None  # the first row is data, not a header
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
    """The share of a column's cells that name images; 0 if most cells repeat."""
    tried = cells[:: max(1, len(cells) // 50)]
    if len(set(tried)) < len(tried) / 2:
        return 0.0
    return sum(bool(name.strip() and files.candidates(name)) for name in tried) / len(tried)


def _place_images(files: Inventory, table: Source, names: str, image: str, found: Detected) -> None:
    """Records where the training images are and how they are found."""
    column = names if image.startswith("{") else image
    cells = table.columns[column]
    if image.startswith("{"):
        ends = files.variants(cells)
        end = next((end for end in ends if end == "_green"), ends[0])
        found.set("data.image_pattern", f"{{{names}}}{end}", f"one of several files per id: {', '.join(ends)}")
        found.unknown.append(f"which of an id's files {', '.join(ends)} to use; {end} is taken (data.image_pattern)")
        cells = [f"{cell}{end}" for cell in cells]
    place = files.place(cells, "train")
    found.set("data.image_dir", place.folder, f"{place.share:.0%} of the names in {column!r} are there")
    found.set("data.image_column", column if not image.startswith("{") else names, "names the images")
    if names != column:
        found.set("data.id_column", names, "a submission's ids")
    if place.suffix and not image.startswith("{"):
        found.set("data.image_suffix", place.suffix, "the names lack it")
    found.summary.append(("images", f"{place.folder}/", f"{place.share:.0%} of the names in {column!r} are there"))


def path_rows(files: Inventory, sample: Source | None, found: Detected) -> Rows | None:
    """Finds rows whose labels are in the images' paths: a folder per class, or before a number in the name."""
    name = next(iter(sample.columns)) if sample else "image"
    train = [image for image in files.images if _is_below(image, "train")]
    others = [image for image in files.images if not _is_below(image, "test")]
    for images in (train, others, files.images):
        for pattern in _patterns(images):
            expression = re.compile(as_expression(pattern))
            matches = [match for image in images if (match := expression.fullmatch(image))]
            labels = [match["label"] for match in matches]
            is_label = not ("{number}" in pattern and all(map(str.isdigit, labels)))
            if is_label and len(matches) >= FOUND * len(images) and 2 <= len(set(labels)) <= len(labels) / 2:
                why = f"{len(matches)} images, {len(set(labels))} labels in their paths"
                found.set("data.train_csv", pattern, why)
                found.set("data.image_column", name, "the sample's id" if sample else "any name")
                found.summary.append(("rows", pattern, why))
                columns = {"label": labels, name: [match.string for match in matches]}
                return Rows(Source(pattern, columns), name, Target.of_classes("label", labels, sample))
    return None


def _is_below(image: str, word: str) -> bool:
    """Whether a folder of an image's path has a word in its name."""
    return any(word in folder.lower() for folder in image.split("/")[:-1])


def _patterns(images: Sequence[str]) -> Iterator[str]:
    """Patterns that the images' paths could follow."""
    suffixes: dict[str, Counter[str]] = {}
    for image in images:
        suffixes.setdefault(image.rpartition("/")[0], Counter())[split_suffix(image)[1]] += 1
    above = dict.fromkeys(folder.rpartition("/")[0] for folder in suffixes if folder)
    yield from (f"{folder}/{{label}}/{{file}}".lstrip("/") for folder in above)
    inner = dict.fromkeys(
        (folder.rpartition("/")[0].rpartition("/")[0], folder.rpartition("/")[2]) for folder in suffixes
    )
    yield from (f"{folder}/{{label}}/{last}/{{file}}".lstrip("/") for folder, last in inner if last)
    if len(suffixes) <= FEW_FOLDERS:
        for folder, counts in suffixes.items():
            suffix = counts.most_common(1)[0][0]
            yield from (f"{folder}/{{label}}{sign}{{number}}{suffix}".lstrip("/") for sign in (".", "_", "-", ""))


def infer_test_rows(files: Inventory, rows: Rows, sample: Source | None, found: Detected) -> None:
    """Finds the test rows: a test table, else the sample submission, else a folder of test images."""
    values = found.values
    image, column = values["data.image_column"], values.get("data.id_column", values["data.image_column"])
    tables = [table for table in files.tables if table.role == "test" and table is not sample]
    table = next((each for each in tables if column in each.columns and not _is_answers(each, rows, sample)), sample)
    if table is None:
        _folder_of_tests(files, found)
        return
    if table is sample:
        cells = next(iter(table.columns.values()))
        found.set("data.test_csv", table.file, "no other list of the test images")
    else:
        cells = table.columns[image if image in table.columns else column]
        if table.file != "test.csv":
            found.set("data.test_csv", table.file, f"{len(table)} rows without labels")
    if sample and table is not sample and not table.is_json:
        own = column_of(table.columns.items(), set(next(iter(sample.columns.values()))))
        if own and own != column:
            found.set("data.id_column", own, "the sample's ids")
    pattern = values.get("data.image_pattern", "")
    place = files.place([cell + pattern.rpartition("}")[2] for cell in cells], "test")
    if place.share < FOUND:
        found.unknown.append(f"where the test images are: {place.share:.0%} of {table.file}'s are in {place.folder}")
    if place.folder != values.get("data.image_dir"):
        found.set("data.test_image_dir", place.folder, f"{place.share:.0%} of {table.file}'s images are there")
    suffix = values.get("data.image_suffix", "")
    if suffix and place.suffix not in ("", suffix):
        found.unknown.append(f"why the test images in {place.folder} are {place.suffix}, not {suffix} as in training")
    if place.suffix and not suffix and not pattern:
        found.set("data.image_suffix", place.suffix, f"{table.file}'s names lack it")
    found.summary.append(("test rows", f"{table.file}, {len(table)} rows", f"images in {place.folder}/"))


def _folder_of_tests(files: Inventory, found: Detected) -> None:
    """Uses all images in a test folder as test rows."""
    images = [image for image in files.images if _is_below(image, "test")]
    levels = {image.count("/") for image in images}
    folder = commonpath([image.rpartition("/")[0] for image in images]) if images else ""
    if len(levels) != 1 or not folder:
        found.unknown.append("the test images: there is no test table, no sample submission and no single test folder")
        return
    between = levels.pop() - folder.count("/") - 1
    pattern = "/".join([folder, *(f"{{folder{at}}}" for at in range(between)), "{file}"])
    found.set("data.test_csv", pattern, "no list of the test images, so all in that folder")
    found.summary.append(("test rows", f"{folder}/, {len(images)} images", "no list of them"))


def _is_answers(table: Source, rows: Rows, sample: Source | None) -> bool:
    """Whether a table holds test labels, which are not the test rows if there is a sample submission."""
    return sample is not None and all(column in table.columns for column in rows.target.columns) and not table.is_json
