"""Unpacks archives among a competition's files next to themselves, safely and once."""

import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from scenes.console import UserError, say
from scenes.files import unzip

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
FREE_DISK_RESERVE = 2**30  # bytes


def packed(root: Path) -> list[Path]:
    """Lists the archives in a folder that are not unpacked yet."""
    found = sorted(file for file in root.iterdir() if file.is_file() and _stem(file) and not file.name.startswith("."))
    return [file for file in found if not os.path.lexists(root / _stem(file)) and not _is_unpacked(file)]


def _is_unpacked(archive: Path) -> bool:
    """Whether all files of a zip archive are next to it, as after ``unzip``; a tar would have to be read in full."""
    if not archive.name.lower().endswith(".zip"):
        return False
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if not name.startswith("__MACOSX")]
    except (OSError, zipfile.BadZipFile):
        return False  # unpacking reports what is wrong
    return bool(names) and all(os.path.lexists(archive.parent / name) for name in names)


def unpack(archive: Path) -> Path:
    """Unpacks an archive to a file or folder named after it; the archive stays.

    Returns:
        The new file or folder.

    Raises:
        UserError: If the archive is damaged, holds a link or a path out of its folder, or does not fit on the disk;
            nothing is left behind.
    """
    target = archive.with_name(_stem(archive))
    hidden = archive.with_name(f".unpack-{archive.name}")
    shutil.rmtree(hidden, ignore_errors=True)  # from a run that was killed
    try:
        hidden.mkdir()
        _check_space(archive)
        if archive.name.lower().endswith(".zip"):
            unzip(archive, hidden)
        else:
            _untar(archive, hidden)
        inner = [path for path in hidden.iterdir() if path.name != "__MACOSX"]
        # train.zip with a folder train, a.csv.zip with a.csv
        is_same = len(inner) == 1 and inner[0].name == target.name
        (inner[0] if is_same else hidden).rename(target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    say(f"unpacked {archive} to {target}")
    return target


def _stem(file: Path) -> str:
    """An archive's name without its archive suffix; empty for other files."""
    suffix = next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), "")
    return file.name[: -len(suffix)] if suffix else ""


def _check_space(archive: Path) -> None:
    """Rejects an archive, such as a zip bomb, whose content is larger than the free disk space."""
    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                size = sum(entry.file_size for entry in opened.infolist())
        else:
            with tarfile.open(archive) as entries:
                size = sum(entry.size for entry in entries)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{archive}: not a readable archive ({error}); download it again") from None
    free = shutil.disk_usage(archive.parent).free
    if size > free - FREE_DISK_RESERVE:
        raise UserError(
            f"{archive}: holds {size / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free, of which one stays free; "
            "make room first"
        )


def _untar(archive: Path, folder: Path) -> None:
    """Unpacks a tar archive of files and folders; rejects links and paths out of the folder."""
    with tarfile.open(archive) as opened:
        entries: Sequence[tarfile.TarInfo] = opened.getmembers()
        for entry in entries:
            parts = PurePosixPath(entry.name.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts or not (entry.isfile() or entry.isdir()):
                raise UserError(
                    f"{archive}: the entry {entry.name!r} is a link or would leave the folder; not unpacked"
                )
        # Permissions as for one's own files; Python before 3.11.4 has no filters.
        opened.extraction_filter = getattr(tarfile, "data_filter", lambda entry, _: entry)
        opened.extractall(folder, entries)
