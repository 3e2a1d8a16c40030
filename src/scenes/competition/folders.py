"""Turns a folder per class into a competition's CSVs."""

import csv
import io
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scenes.competition.find import is_litter, is_utf8, split_suffix
from scenes.competition.path_pattern import natural
from scenes.competition.table import some
from scenes.console import Problem, UserError, raise_problems
from scenes.files import write_text

ROLES = {
    "train": ("train", "training", "seg_train"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing", "seg_test"),
}
CSVS = ("train.csv", "test.csv", "test_labels.csv", "sample_submission.csv")


class Row(NamedTuple):
    """One image: its path below the image folder, and its class where that is known."""

    image_name: str
    label: str = ""


@dataclass(frozen=True)
class Layout:
    """What a folder of class folders holds, in natural order.

    Attributes:
        train: Training rows.
        validation: Rows of the validation folder, empty if there is none.
        test: Rows of the test folder, with or without labels.
        ignored: How many files were left out, by kind.
        unused: Folders next to the training folder that are not used.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    ignored: Counter[str]
    unused: list[str]


def read_folders(folder: Path) -> Layout:
    """Finds the images and classes of the folder-per-class layout.

    The class folders are in `folder` itself, or in its `train` folder next to `validation` and `test` folders; any of
    these may be nested in folders that hold nothing else.

    Args:
        folder: Where to look; the rows' names are POSIX paths below it.

    Raises:
        UserError: If there is no such folder; else listing all problems in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the class folders")
    reader = _Reader(folder)
    layout = reader.read()
    raise_problems(reader.problems, f"{folder} cannot be used")
    return layout


def write_csvs(layout: Layout, out: Path) -> list[Path]:
    """Writes train.csv and, where there are test images, test.csv; labels of test images go to test_labels.csv.

    Args:
        layout: The rows. If there are validation rows, train.csv tells them apart in a column `split`.
        out: The competition's folder, created if missing.

    Returns:
        The files written.

    Raises:
        UserError: If `out` already holds a competition's CSV; nothing is written.
    """
    check_out(out)
    # Any of them: a new train.csv next to another competition's test.csv would make no sense.
    if there := [name for name in CSVS if os.path.lexists(out / name)]:
        raise UserError(f"{out / there[0]}: already exists and will not be overwritten; choose another --out")
    tables: dict[str, list[Sequence[str]]] = {}
    if layout.test:
        tables["test.csv"] = [("image_name",), *((row.image_name,) for row in layout.test)]
        if layout.test[0].label:
            tables["test_labels.csv"] = [("image_name", "label"), *layout.test]
    if layout.validation:
        rows = [(*row, "train") for row in layout.train] + [(*row, "validation") for row in layout.validation]
        tables["train.csv"] = [("image_name", "label", "split"), *rows]
    else:
        tables["train.csv"] = [("image_name", "label"), *layout.train]
    for name, table in tables.items():
        write_text(out / name, _csv_text(table))
    return [out / name for name in tables]


def check_out(out: Path) -> None:
    """Checks that a competition's folder is a folder or missing.

    Raises:
        UserError: If it is a file.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"{out}: not a folder; choose another with --out")


class _Listing(NamedTuple):
    """What is in a folder, in natural order; `others` has the suffixes of files that are not images."""

    folders: list[Path]
    images: list[Path]
    others: list[str]


class _Reader:
    """Walks the folders; collects what is wrong and what is left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[Problem] = []
        self.ignored: Counter[str] = Counter()
        self.listings: dict[Path, _Listing] = {}

    def read(self) -> Layout:
        root = self.descend(self.folder, stop={name for names in ROLES.values() for name in names})
        train, validation, test = self.split_folders(root)
        unused = []
        if train:
            used = {train, validation, test}
            unused = [self.name(folder) for folder in self.look(root).folders if folder not in used]
            self.leave_out(self.look(root).images)
        train_rows = self.labelled(train or root)
        classes = {row.label for row in train_rows}
        if not self.problems:
            self.check_classes(classes, train or root)
        validation_rows = self.labelled(validation) if validation else []
        if validation and not self.problems:
            self.compare(classes, {row.label for row in validation_rows}, validation)
        test_rows = self.test(test, classes) if test else []
        return Layout(train_rows, validation_rows, test_rows, self.ignored, unused)

    def split_folders(self, root: Path) -> tuple[Path | None, Path | None, Path | None]:
        """The folders of training, validation and test images, if the classes are not in `root` itself.

        A folder `train` or `test` may also be a class, such as a kind of vehicle: it is one if it holds images and is
        next to the folders of other classes.
        """
        train, validation, test = (self.role(root, names) for names in ROLES.values())
        classes = [folder for folder in self.look(root).folders if folder not in (train, validation, test)]
        if train and (self.look(self.descend(train)).folders or not classes):
            return train, validation, test
        if not train and not classes and (other := validation or test):
            what = f"holds {other.name}/ but no train/"
            self.report(root, what, "put the class folders into a `train` folder there")
        return None, None, None

    def check_classes(self, classes: set[str], folder: Path) -> None:
        """Checks that there are at least two, and none that differ only in spaces."""
        if len(classes) == 1:
            self.report(folder, f"only one class folder ({min(classes)})", "at least two classes are needed")
        if padded := sorted(name for name in classes if name != name.strip() and name.strip() in classes):
            what = f"class folders that differ only in spaces: {', '.join(map(repr, padded))}"
            self.report(folder, what, "merge them, or rename one")

    def role(self, root: Path, names: Collection[str]) -> Path | None:
        """The folder with a role, such as `train`."""
        found = [folder for folder in self.look(root).folders if folder.name.lower() in names]
        if len(found) > 1:
            both = " and ".join(folder.name for folder in found)
            self.report(root, f"{both} have the same role", "keep one of them, or merge them")
        return found[0] if found else None

    def labelled(self, folder: Path) -> list[Row]:
        """The rows of all class folders in a folder."""
        folder = self.descend(folder)
        listing = self.look(folder)
        if not listing.folders:
            found = f"; {len(listing.images)} images lie there without one" if listing.images else ""
            self.report(folder, f"no class folders{found}", "create a folder for each class and put its images there")
        else:
            self.leave_out(listing.images)
        return [
            Row(self.name(image), class_folder.name)
            for class_folder in listing.folders
            for image in self.images(class_folder)
        ]

    def test(self, folder: Path, classes: set[str]) -> list[Row]:
        """The rows of the test folder: labelled if its folders are the classes."""
        folder = self.descend(folder)
        listing = self.look(folder)
        names = {inner.name for inner in listing.folders}
        if names and names <= classes and not listing.images:
            return self.labelled(folder)
        if not names or (len(names) == 1 and not listing.images):
            return [Row(self.name(image)) for image in self.images(folder)]
        if not self.problems:  # else the classes are not known
            what = "neither images alone nor folders of the training classes alone: " + some(sorted(names))
            self.report(folder, what, "put the test images directly there, or into folders named as those in train")
        return []

    def images(self, folder: Path) -> list[Path]:
        """The images of one folder, which may be in a single folder within it."""
        while not self.look(folder).images and len(self.look(folder).folders) == 1:
            folder = self.look(folder).folders[0]
        listing = self.look(folder)
        if listing.folders:
            inner = some([inner.name for inner in listing.folders])
            self.report(folder, f"holds folders ({inner}) where images are expected", "move their images up")
        elif not listing.images:
            self.report(folder, "no images", "put its images there, or remove the folder")
        return listing.images

    def compare(self, train: set[str], validation: set[str], folder: Path) -> None:
        """Checks that both have the same classes, without which a score would mean little."""
        lacking = ("lacks", sorted(train - validation, key=natural))
        strange = ("has more classes than train:", sorted(validation - train, key=natural))
        for verb, classes in (lacking, strange):
            if classes:
                self.report(folder, f"{verb} {some(classes)}", "training and validation need the same class folders")

    def descend(self, folder: Path, stop: Collection[str] = ()) -> Path:
        """Goes down through folders that hold only one folder, unless that is a class folder."""
        while True:
            listing = self.look(folder)
            inner = listing.folders[0] if len(listing.folders) == 1 and not listing.images else None
            if not inner or inner.name.lower() in stop or not self.look(inner).folders:
                return folder
            folder = inner

    def look(self, folder: Path) -> _Listing:
        """Lists a folder once; counts the files that are not images."""
        if folder not in self.listings:
            listing = _list(folder)
            self.ignored.update(listing.others)
            self.listings[folder] = listing
        return self.listings[folder]

    def leave_out(self, images: Sequence[Path]) -> None:
        if images:
            self.ignored["images outside the class folders"] += len(images)

    def name(self, path: Path) -> str:
        """The path as the CSV has it."""
        name = path.relative_to(self.folder).as_posix()
        if not is_utf8(name):
            self.report(path.parent, "names that are not UTF-8, so a CSV cannot hold them", "rename the files")
        return name

    def report(self, where: Path, what: str, remedy: str) -> None:
        problem = Problem(str(where), what, remedy)
        if problem not in self.problems:
            self.problems.append(problem)


def _list(folder: Path) -> _Listing:
    """Lists a folder, without hidden files and litter."""
    listing = _Listing([], [], [])
    for entry in os.scandir(folder):
        path = folder / entry.name
        if is_litter(entry.name):
            continue
        if entry.is_dir():
            listing.folders.append(path)
        elif split_suffix(entry.name)[1] and entry.is_file():
            listing.images.append(path)
        else:
            listing.others.append(path.suffix.lower() or "without extension")
    for paths in (listing.folders, listing.images):
        paths.sort(key=lambda path: natural(path.name))
    return listing


def _csv_text(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
