"""Files that are either whole or not there: atomic writes, numbered back-ups, safe unpacking."""

import glob
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from scenes.console import UserError


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file so that a reader, or a kill at any moment, sees the old content or the new, never a part.

    Args:
        path: The file to write; its folder is made if missing.
        write: Called with a temporary path in the same folder, which it fills.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not _is_running(int(left_over.suffixes[-2][1:])):
            left_over.unlink(missing_ok=True)  # its process was killed
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, with the same bytes on every platform."""
    write_atomic(path, lambda temporary: temporary.write_bytes(text.encode()))


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_old(path: Path) -> Path | None:
    """Moves an existing file out of the way to the first free `stem.N.suffix`.

    Returns:
        Where the old file is now, or None if there was none.
    """
    if not path.exists():
        return None
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
    return kept


def unzip(archive: Path, folder: Path) -> list[Path]:
    """Unpacks a zip archive, refusing entries that would land outside `folder` or are links.

    An interruption leaves what was unpacked so far: unpack into a temporary folder where that matters.

    Returns:
        The files written.

    Raises:
        UserError: If the archive is damaged or holds an unsafe entry; nothing is unpacked then.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            for entry in entries:
                parts = PurePosixPath(entry.filename.replace("\\", "/"))
                is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
                outside = not parts.parts or parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]
                if outside or is_link:
                    raise UserError(f"{archive}: the entry {entry.filename!r} would leave the folder; not unpacked")
            if bad := opened.testzip():
                raise UserError(f"{archive}: the entry {bad!r} is damaged; download the archive again")
            return [Path(opened.extract(entry, folder)) for entry in entries]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive}: not a readable zip archive ({error}); download it again") from None
    except (RuntimeError, NotImplementedError) as error:  # a password, a compression that Python does not know
        raise UserError(f"{archive}: cannot be unpacked here ({error}); unpack it by hand") from None
