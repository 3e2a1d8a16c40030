"""Files and folders: atomic writes, numbered backups, locks, safe unpacking."""

import filecmp
import glob
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from scenes.console import UserError, say

PROBE_BYTES = 2**20


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file so that it always holds either its old or its new content, even if the process is killed.

    Args:
        path: The file to write; its folder is created if missing.
        write: Called with a temporary path in the same folder, which it fills.

    Raises:
        OSError: If the disk is full, whatever error `write` raised.
    """
    make_folder(path.parent)
    for left_over in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = left_over.suffixes[-2][1:]
        if pid.isdecimal() and not _is_running(int(pid)):
            left_over.unlink(missing_ok=True)  # its process was killed
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns what torch, safetensors and NumPy raise on a full disk into an OSError that names the file."""
    try:
        yield
    except Exception as error:
        if (cause := _disk_error(error, path.parent)) is None:
            raise
        cause.filename = cause.filename or str(path)
        raise cause from None


def _disk_error(error: Exception, folder: Path) -> OSError | None:
    """Finds the OSError behind another error by writing to the same folder; None if that works."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if isinstance(error, UserError):
        return None
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as cause:
        return cause
    return None


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents, if missing.

    Raises:
        UserError: If a file is in the way.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def only_process(folder: Path, doing: str) -> Iterator[None]:
    """Locks a folder, which is created if missing; a killed process releases its lock.

    Args:
        folder: What to lock.
        doing: What the other process that holds the lock is doing, for the message.

    Raises:
        UserError: If another process holds the lock.
    """
    make_folder(folder)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another process is {doing}; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


def check_folder(folder: Path) -> None:
    """Checks that a folder exists or can be created.

    Raises:
        UserError: If a file is in the way.
    """
    for place in (folder, *folder.parents):
        if os.path.isfile(place):  # noqa: PTH113 - false where pathlib raises, e.g. below a file
            raise UserError(f"{place}: is a file where a folder is needed; move it away or rename it")


def check_file(path: Path) -> None:
    """Checks, before the work begins, that its result can be written to this path.

    Raises:
        UserError: If the path is a folder, or a file is where its folder would be.
    """
    check_folder(path.parent)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")


def _is_running(pid: int) -> bool:
    """Whether there is a process with this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, with the same bytes on every platform."""
    write_atomic(path, lambda temporary: temporary.write_bytes(text.encode()))


def write_result(path: Path, text: str) -> None:
    """Writes UTF-8 text; an existing file with different content, perhaps edited, is kept under a number."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(text.encode())
        keep_different(path, temporary)

    write_atomic(path, write)


def keep_different(path: Path, new: Path) -> None:
    """Renames a file, and says so, if its replacement has different content."""
    if path.exists() and not filecmp.cmp(path, new, shallow=False):
        say(f"{path} existed with different content; it is now {keep_old(path)}")


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keep_old(path: Path) -> Path | None:
    """Renames an existing file to the first free `stem.N.suffix`.

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
    """Unpacks a zip archive, refusing entries that are links or would land outside `folder`.

    If interrupted, it leaves what was unpacked so far: use a temporary folder where that matters.

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
            for entry in entries:
                entry.filename = entry.filename.replace("\\", "/")  # some Windows programs write backslashes
            return [Path(opened.extract(entry, folder)) for entry in entries]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive}: not a readable zip archive ({error}); download it again") from None
    except (RuntimeError, NotImplementedError) as error:  # a password, or an unsupported compression
        raise UserError(f"{archive}: cannot be unpacked here ({error}); unpack it by hand") from None
