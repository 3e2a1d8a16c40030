"""A folder for each class as a competition's CSVs."""

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
        validation: Rows of the validation folder, none where there is no such folder.
        test: Rows of the test folder, with or without labels.
        ignored: How many files were left out, by what they are.
        unused: Folders beside the training folder that play no part.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    ignored: Counter[str]
    unused: list[str]


def read_folders(folder: Path) -> Layout:
    """Finds the images and classes of the folder-per-class layout.

    The class folders lie in `folder` itself, or in its `train` folder beside `validation` and `test` folders; around
    any of these there may be folders that hold nothing else.

    Args:
        folder: Where to look; the rows' names are POSIX paths below it.

    Raises:
        UserError: If there is no such folder, or with all that is wrong in it.
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
        layout: The rows. With validation rows train.csv tells them apart in a column `split`.
        out: The competition's folder, made if missing.

    Returns:
        The files written.

    Raises:
        UserError: If `out` already holds a competition's CSV; nothing is written then.
    """
    check_out(out)
    # Any of them: a new train.csv beside the test.csv of something else would be no competition.
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
    """Refuses a competition's folder that is something else; it may be missing.

    Raises:
        UserError: If it is a file.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"{out}: not a folder; choose another with --out")


class _Listing(NamedTuple):
    """What lies in a folder, in natural order; `others` are the files that are no images, by what they are."""

    folders: list[Path]
    images: list[Path]
    others: list[str]


class _Reader:
    """Goes through the folders; collects what is wrong and what is left out."""

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
        """The folders of training, validation and test images, where the classes do not lie in `root` itself.

        A folder `train` or `test` may also be a class, such as a kind of vehicle: it is one where it holds images
        beside the folders of other classes.
        """
        train, validation, test = (self.role(root, names) for names in ROLES.values())
        classes = [folder for folder in self.look(root).folders if folder not in (train, validation, test)]
        if train and (self.look(self.descend(train)).folders or not classes):
            return train, validation, test
        if not train and not classes and (beside := validation or test):
            what = f"holds {beside.name}/ but no train/"
            self.report(root, what, "put the class folders into a `train` folder there")
        return None, None, None

    def check_classes(self, classes: set[str], folder: Path) -> None:
        """There must be two, and no two that differ in spaces alone."""
        if len(classes) == 1:
            self.report(folder, f"only one class folder ({min(classes)})", "two classes at least are needed")
        if padded := sorted(name for name in classes if name != name.strip() and name.strip() in classes):
            what = f"class folders that differ only in spaces: {', '.join(map(repr, padded))}"
            self.report(folder, what, "merge them, or rename one")

    def role(self, root: Path, names: Collection[str]) -> Path | None:
        """The folder that plays a part, such as `train`."""
        found = [folder for folder in self.look(root).folders if folder.name.lower() in names]
        if len(found) > 1:
            both = " and ".join(folder.name for folder in found)
            self.report(root, f"{both} play the same part", "keep one of them, or merge them")
        return found[0] if found else None

    def labelled(self, folder: Path) -> list[Row]:
        """The rows of all class folders in a folder."""
        folder = self.descend(folder)
        listing = self.look(folder)
        if not listing.folders:
            found = f"; {len(listing.images)} images lie there without one" if listing.images else ""
            self.report(folder, f"no class folders{found}", "make a folder for each class and put its images there")
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
        """The images of one folder, which may lie in a single folder within."""
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
        """Both must have the same classes, or a score would be about something else."""
        lacking = ("lacks", sorted(train - validation, key=natural))
        strange = ("has more classes than train:", sorted(validation - train, key=natural))
        for verb, classes in (lacking, strange):
            if classes:
                self.report(folder, f"{verb} {some(classes)}", "training and validation need the same class folders")

    def descend(self, folder: Path, stop: Collection[str] = ()) -> Path:
        """Goes down through folders that hold one folder alone, as far as that is no class folder."""
        while True:
            listing = self.look(folder)
            inner = listing.folders[0] if len(listing.folders) == 1 and not listing.images else None
            if not inner or inner.name.lower() in stop or not self.look(inner).folders:
                return folder
            folder = inner

    def look(self, folder: Path) -> _Listing:
        """Reads a folder once; what is no image is counted then."""
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
    """Reads a folder, without hidden files and litter."""
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
