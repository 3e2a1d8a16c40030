"""Finds the image file a name stands for: the path itself, else the one file of that name or stem below the folder."""

import difflib
import os
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from scenes.console import UserError

# What the decoder reads, and HEIC, which its error names. The only such list: prepare.py and detect use it too.
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
}
SAME_KIND = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif", ".heif": ".heic"}
LITTER = {"thumbs.db", "desktop.ini", "__macosx"}  # skipped, like hidden files
MOST_COMPARED = 50_000  # names to search for the nearest one


class Found(NamedTuple):
    """What a name stands for.

    Attributes:
        path: The image file, or where it was expected.
        files: The matching files, as paths below the folder: one if it was found, several if the name is ambiguous.
    """

    path: Path
    files: list[str]


class Finder:
    """Finds images below a folder; its files are listed once, when a name is not simply a path."""

    def __init__(self, folder: Path, suffix: str = "") -> None:
        """Takes the folder, and the suffix that names lack, such as ``.jpg``."""
        self.folder, self.suffix, self._root = folder, suffix, str(folder)

    def find(self, name: str) -> Found:
        """Finds one image.

        Names may differ from the file's in Unicode form, in case, in backslashes for slashes, and in the suffix if they
        have none or one that no file has. Folders in the name must match the file's, as far as both have any.
        """
        whole = name if self.suffix and name.endswith(self.suffix) else name + self.suffix
        # os.path, since pathlib takes several times as long.
        path = os.path.normpath(os.path.join(self._root, _on_disk(whole)))  # noqa: PTH118
        if os.path.isfile(path):  # noqa: PTH113 - pathlib raises for a name that is too long
            return Found(Path(path), [whole])
        files = self._best(whole)
        return Found(self.folder / files[0] if len(files) == 1 else Path(path), files)

    def leaves(self, name: str) -> bool:
        """Whether a name leads out of the folder, by ``..`` or as an absolute path; links are not followed."""
        if ".." not in name and "\0" not in name and not name.startswith("/") and name not in ("", "."):
            return False
        root = os.path.abspath(self.folder)  # noqa: PTH100
        path = os.path.normpath(os.path.join(root, _on_disk(name)))  # noqa: PTH118
        return "\0" in name or not path.startswith(os.path.join(root, ""))  # noqa: PTH118

    def nearest(self, name: str) -> str | None:
        """The file whose name is closest to one that was not found, as a path below the folder."""
        if len(self._names) > MOST_COMPARED:
            return None
        match = difflib.get_close_matches(PurePosixPath(name.replace("\\", "/")).name[:255], self._names, 1, 0.7)
        return self._names[match[0]] if match else None

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        """The files below the folder, by their normalised stem."""
        found: dict[str, list[str]] = {}
        for file in image_files(self.folder):
            found.setdefault(normal(split_suffix(file.rpartition("/")[2])[0]), []).append(file)
        return found

    @cached_property
    def _names(self) -> dict[str, str]:
        """The files below the folder, by their names."""
        return {PurePosixPath(file).name: file for files in self._by_stem.values() for file in files}

    @cached_property
    def _kinds(self) -> set[str]:
        """The suffixes below the folder."""
        return {_kind(split_suffix(file)[1]) for files in self._by_stem.values() for file in files}

    def _best(self, name: str) -> list[str]:
        """The files that match a name best, several if equally well."""
        *folders, last = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")] or [""]
        stem, suffix = split_suffix(last)
        scores: dict[str, tuple[int, bool, bool]] = {}
        for file in self._by_stem.get(normal(stem), []):
            *own, own_last = file.split("/")
            common = min(len(folders), len(own))
            agrees = not common or list(map(normal, folders[-common:])) == list(map(normal, own[-common:]))
            is_same = _kind(split_suffix(own_last)[1]) == _kind(suffix)
            if agrees and (is_same or not suffix or _kind(suffix) not in self._kinds):
                scores[file] = (common, own_last == last, split_suffix(own_last)[1] == suffix)
        best = max(scores.values(), default=None)
        return [file for file, score in scores.items() if score == best]


def image_files(folder: Path) -> Iterator[str]:
    """Lists the image files below a folder as POSIX paths, each folder's in order, and nothing if it does not exist.

    Links are followed, but not in circles. Only one folder's names are in memory at a time.

    Raises:
        UserError: If a folder cannot be read.
    """
    waiting = [""]
    while waiting:
        below = waiting.pop()
        where = os.path.join(folder, below)  # noqa: PTH118
        try:
            with os.scandir(where) as opened:
                entries = sorted((entry for entry in opened if not is_litter(entry.name)), key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror})") from None
        inner = [entry.name for entry in entries if _is_folder(entry) and not _leads_back(where, entry.name)]
        waiting += [f"{below}{name}/" for name in reversed(inner)]
        yield from (below + entry.name for entry in entries if split_suffix(entry.name)[1] and _is_file(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))  # noqa: PTH112


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether this is a file, or a link that should lead to one; reading a pipe would never end."""
    if not entry.is_symlink():
        return entry.is_file(follow_symlinks=False)
    return os.path.isfile(entry) or not os.path.exists(entry)  # noqa: PTH110, PTH113 - they never raise


def _leads_back(where: str, name: str) -> bool:
    """Whether a folder is a link to one that contains it."""
    path = os.path.join(where, name)  # noqa: PTH118
    if not os.path.islink(path):  # noqa: PTH114
        return False
    real = os.path.join(os.path.realpath(path), "")  # noqa: PTH118
    return os.path.join(os.path.realpath(where), "").startswith(real)  # noqa: PTH118


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden or made by an operating system."""
    return name.startswith(".") or name.lower() in LITTER


def split_suffix(name: str) -> tuple[str, str]:
    """Splits off an image suffix; an id with dots may only seem to have a suffix."""
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if stem and f".{suffix}".lower() in IMAGE_SUFFIXES else (name, "")


def _kind(suffix: str) -> str:
    return SAME_KIND.get(suffix.lower(), suffix.lower())


def normal(text: str) -> str:
    """Normalises a name for comparison: one Unicode form, no case."""
    return unicodedata.normalize("NFC", text).casefold()


def _on_disk(name: str) -> str:
    """Encodes a name as a UTF-8 file name, even where Python takes file names for ASCII."""
    return os.fsdecode(name.encode(errors="surrogateescape"))


def is_utf8(name: str) -> bool:
    """Whether a file's name can be written to a text file."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
