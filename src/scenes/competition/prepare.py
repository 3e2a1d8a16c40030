"""How a competition's files come into their folder: from a folder for each class, or from Kaggle."""

import csv
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scenes import kaggle_cli
from scenes.console import Problem, UserError, raise_problems
from scenes.files import IMAGE_SUFFIXES, unzip, write_text

LITTER = {"thumbs.db", "desktop.ini", "__macosx"}  # beside hidden files: not worth a word
ROLES = {
    "train": ("train", "training", "seg_train"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing", "seg_test"),
}
CSVS = ("train.csv", "test.csv", "test_labels.csv", "sample_submission.csv")
EXAMPLES = 5


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
    _refuse_file(out)
    # Any of them: a new train.csv beside the test.csv of something else would be no competition.
    if there := [name for name in CSVS if os.path.lexists(out / name)]:
        raise UserError(f"{out / there[0]}: exists already and is not overwritten; choose another folder with --out")
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


def download(slug: str, out: Path) -> list[Path]:
    """Downloads a competition's files with the kaggle command and unpacks them.

    All happens in a hidden folder of `out`, from which whole files are moved into place at the end. An interrupted
    download stays there, and the next call goes on with it.

    Args:
        slug: The last part of the competition's address.
        out: The competition's folder, made if missing.

    Returns:
        The files and folders that came into `out`.

    Raises:
        UserError: If Kaggle does not deliver, the archive is unsafe or a file exists already; `out` is as before then.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", slug):
        raise UserError(
            f"--competition {slug!r}: not a competition's name; it is the last part of the competition's address, "
            "https://www.kaggle.com/competitions/NAME"
        )
    _refuse_file(out)
    kaggle_cli.command()  # known before a folder is made
    hidden = out / f".download-{slug}"
    hidden.mkdir(parents=True, exist_ok=True)
    rules = f"https://www.kaggle.com/competitions/{slug}/rules"
    remedies = {
        "forbidden": f"Kaggle denies access to {slug}: join the competition and accept its rules at {rules}, with the "
        "account that your token belongs to",
        "missing": f"Kaggle knows no competition {slug}: the name is the last part of its address",
    }
    try:
        kaggle_cli.call(["competitions", "download", "-c", slug, "-p", str(hidden)], remedies)
        archives = sorted(hidden.glob("*.zip"))
        if len(archives) != 1:
            raise UserError(f"{hidden}: kaggle delivered no zip archive; look what it holds, and unpack it by hand")
        return _unpack(archives[0], hidden, out)
    finally:
        if hidden.is_dir() and not any(hidden.iterdir()):
            hidden.rmdir()


def _refuse_file(out: Path) -> None:
    """The competition's folder may be missing, but not be something else."""
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
        train, validation, test = (self.role(root, names) for names in ROLES.values())
        beside = validation or test
        if beside and not train:
            self.report(
                root, f"holds {beside.name}/ but no train/", "put the class folders into a `train` folder there"
            )
            return Layout([], [], [], self.ignored, [])
        used = {train, validation, test}
        unused = [self.name(folder) for folder in self.look(root).folders if folder not in used] if train else []
        if train:
            self.leave_out(self.look(root).images)

        train_rows = self.labelled(train or root)
        classes = {row.label for row in train_rows}
        if len(classes) == 1 and not self.problems:
            self.report(train or root, f"only one class folder ({min(classes)})", "two classes at least are needed")
        validation_rows = self.labelled(validation) if validation else []
        if validation and not self.problems:
            self.compare(classes, {row.label for row in validation_rows}, validation)
        test_rows = self.test(test, classes) if test else []
        return Layout(train_rows, validation_rows, test_rows, self.ignored, unused)

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
            what = "neither images alone nor folders of the training classes alone: " + _some(sorted(names))
            self.report(folder, what, "put the test images directly there, or into folders named as those in train")
        return []

    def images(self, folder: Path) -> list[Path]:
        """The images of one folder, which may lie in a single folder within."""
        while not self.look(folder).images and len(self.look(folder).folders) == 1:
            folder = self.look(folder).folders[0]
        listing = self.look(folder)
        if listing.folders:
            inner = _some([inner.name for inner in listing.folders])
            self.report(folder, f"holds folders ({inner}) where images are expected", "move their images up")
        elif not listing.images:
            self.report(folder, "no images", "put its images there, or remove the folder")
        # Checked here, so that it is not first found when training starts: an image name may not leave the folder.
        links = [path for path in listing.images if path.is_symlink()]
        if not all(path.resolve().is_relative_to(self.folder.resolve()) for path in [folder, *links]):
            self.report(folder, f"links to images outside {self.folder}", "copy them instead (cp -rL)")
        return listing.images

    def compare(self, train: set[str], validation: set[str], folder: Path) -> None:
        """Both must have the same classes, or a score would be about something else."""
        lacking = ("lacks", sorted(train - validation, key=_natural))
        strange = ("has more classes than train:", sorted(validation - train, key=_natural))
        for verb, classes in (lacking, strange):
            if classes:
                self.report(folder, f"{verb} {_some(classes)}", "training and validation need the same class folders")

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
        try:
            name.encode()
        except UnicodeEncodeError:
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
        if entry.name.startswith(".") or entry.name.lower() in LITTER:
            continue
        if entry.is_dir():
            listing.folders.append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
            listing.images.append(path)
        else:
            listing.others.append(path.suffix.lower() or "without extension")
    for paths in (listing.folders, listing.images):
        paths.sort(key=lambda path: _natural(path.name))
    return listing


def _natural(text: str) -> tuple[list[str | int], str]:
    """Sorts 9.jpg before 10.jpg; numbers and words alternate, so that like is compared with like."""
    parts = re.split("([0-9]+)", text)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], text


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:EXAMPLES]) + (f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else "")


def _csv_text(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _unpack(archive: Path, hidden: Path, out: Path) -> list[Path]:
    """Unpacks out of sight, then moves all into place and removes the archive."""
    unpacked = hidden / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
    try:
        try:
            unzip(archive, unpacked)
        except UserError:
            shutil.rmtree(hidden)  # damaged or unsafe: of no use to the next call
            raise
        moves = list(_moves(unpacked, out))
        if taken := [str(place) for _, place in moves if os.path.lexists(place)]:
            raise UserError(
                f"{len(taken)} of the competition's files exist already and are not overwritten: {_some(taken)}; move "
                f"them away and give the same command again (the download is kept in {hidden}), or choose another --out"
            )
        _move(moves)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    shutil.rmtree(hidden)
    return [place for _, place in moves]


def _moves(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """The fewest renames that bring all of `source` into `target`, merging folders."""
    for item in sorted(source.iterdir(), key=lambda path: _natural(path.name)):
        place = target / item.name
        if item.is_dir() and place.is_dir() and not place.is_symlink():  # a link leads to someone else's folder
            yield from _moves(item, place)
        else:
            yield item, place


def _move(moves: Sequence[tuple[Path, Path]]) -> None:
    """Renames all or, if anything stops it, none."""
    try:
        for item, place in moves:
            item.rename(place)
    except BaseException:
        for item, place in moves:
            if not item.exists():
                place.rename(item)
        raise
