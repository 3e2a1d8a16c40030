"""Images decoded once and kept as uint8 in a memory-mapped cache that all runs share."""

import os
import shutil
from collections.abc import Mapping, Sequence
from copy import copy
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
from filelock import FileLock

from scenes.competition.table import Table, problem_for_rows
from scenes.config import DataConfig
from scenes.console import Problem, progress, say
from scenes.data.decode import UNSCALED, BadImageError, decode, decode_all, value_range
from scenes.files import disk_errors, make_folder

FORMAT_VERSION = 6
FREE_DISK_RESERVE = 2**30
MISSING = "no such file"
DIM = f"16-bit {UNSCALED}: most use less than a quarter of 16 bits"
DIM_BELOW = 64  # of 256 levels
MEASURED = 500  # the most files to read to suggest a data.pixel_range


class ImageSource(Protocol):
    """Images by row: RGB, uint8, shape (height, width, 3)."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> np.ndarray: ...


class Images:
    """Decoded images by row, cheap to send to worker processes.

    Attributes:
        pixel_hashes: (n,) array of 32 hexadecimal digits; equal for identical images, see `Decoded`.
        bad: Why images cannot be read, by row.
    """

    def __init__(
        self, folder: Path, paths: Sequence[Path], short_side: int, pixel_range: Sequence[float] | None = None
    ) -> None:
        self._file = folder / "images.bin"
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            self._offsets, self._shapes = index["offsets"], index["shapes"]
            self.pixel_hashes: np.ndarray = index["pixel_hashes"]
            self.bad = {row: str(why) for row, why in enumerate(index["reasons"]) if why}
        self.is_cached = self._file.exists()
        self._paths = [] if self.is_cached else list(paths)
        self._short_side, self._pixel_range = short_side, pixel_range
        self._bytes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def shapes(self) -> np.ndarray:
        """Their heights and widths, int64, shape (n, 2)."""
        return self._shapes

    def __getitem__(self, row: int) -> np.ndarray:
        """RGB, uint8, shape (height, width, 3); read-only."""
        if not self.is_cached:
            return decode(self._paths[row], self._short_side, self._pixel_range).pixels
        if self._bytes is None:
            self._bytes = np.memmap(self._file, np.uint8, "r")
        height, width = self._shapes[row]
        start = self._offsets[row]
        return self._bytes[start : start + height * width * 3].reshape(height, width, 3)

    def take(self, rows: Sequence[int]) -> "Images":
        """The same images at these rows only."""
        taken = copy(self)
        at = np.asarray(rows, np.int64)
        taken._offsets, taken._shapes, taken.pixel_hashes = self._offsets[at], self._shapes[at], self.pixel_hashes[at]
        taken._paths = [self._paths[row] for row in rows] if self._paths else []
        taken.bad = {place: self.bad[row] for place, row in enumerate(rows) if row in self.bad}
        return taken

    def __getstate__(self) -> dict[str, object]:
        # Pickling a memory map would copy every byte of it.
        return {**self.__dict__, "_bytes": None}


def read_images(table: Table, size: int, data: DataConfig, label: str) -> tuple[Images | None, list[Problem]]:
    """Opens a table's images, or lists which rows cannot be read; `read_train` has already reported missing files.

    Args:
        table: The rows.
        size: The largest image size the run needs, in pixels.
        data: Has the cache's location and the pixel range.
        label: What to call these images in messages.
    """
    present = _present(table)
    if not present:
        return None, []
    paths = [table.paths[row] for row in present]
    images, bad = open_images(paths, size, data.cache, label, pixel_range=data.pixel_range)
    problems = unreadable_rows(table, {present[at]: why for at, why in bad.items()})
    return (images if len(present) == len(table) else None), problems


def unreadable_rows(table: Table, reasons: Mapping[int, str]) -> list[Problem]:
    """Lists one problem per reason; `read_train` has already reported missing files."""
    problems: list[Problem] = []
    for reason in sorted({*reasons.values()} - {MISSING}):
        rows = [row for row, why in reasons.items() if why == reason]
        remedy = "get the file again or drop the row (data.drop)"
        if UNSCALED in reason:
            remedy = _range_remedy([table.paths[row] for row in rows])
        what = f"with an unreadable image ({reason})"
        problems += problem_for_rows(table, rows, table.names, what, remedy)
    return problems


def _range_remedy(paths: Sequence[Path]) -> str:
    """Suggests a data.pixel_range from the files' values."""
    low, high = (f"{end:g}" for end in value_range(paths[:MEASURED]))
    looked_at = "they" if len(paths) <= MEASURED else f"the first {MEASURED}"
    return (
        f"{looked_at} hold values from {low} to {high}; set the values of black and white, for training and "
        f"test images alike: data.pixel_range: [{low}, {high}]"
    )


def read_good_images(table: Table, size: int, data: DataConfig, label: str) -> tuple[Images | None, dict[int, str]]:
    """Opens those of a table's images that can be read; arguments as for `read_images`.

    Returns:
        The images in the table's order, or None if there are none; and why each of the other rows is left out.
    """
    present = _present(table)
    reasons = dict.fromkeys(sorted(set(range(len(table))) - set(present)), MISSING)
    if not present:
        return None, reasons
    paths = [table.paths[row] for row in present]
    images, bad = open_images(paths, size, data.cache, label, keep_bad=True, pixel_range=data.pixel_range)
    assert images is not None
    reasons |= {present[at]: why for at, why in bad.items()}
    good = [at for at in range(len(present)) if at not in bad]
    return images.take(good) if good else None, dict(sorted(reasons.items()))


def _present(table: Table) -> list[int]:
    return [row for row, path in enumerate(table.paths) if os.path.isfile(path)]  # noqa: PTH113 - it never raises


def open_images(
    paths: Sequence[Path],
    largest_size: int,
    cache: Path,
    label: str,
    keep_bad: bool = False,
    pixel_range: Sequence[float] | None = None,
) -> tuple[Images | None, dict[int, str]]:
    """Opens the cache of these files, building it first if there is none.

    Args:
        paths: The image files, in order.
        largest_size: The largest image size the run needs, in pixels; more than 1.5 times that is not kept.
        cache: The folder of all caches.
        label: What to call these images in messages.
        keep_bad: Open the images even if some cannot be read; those must not be accessed.
        pixel_range: See `decode`.

    Returns:
        The images, or None if some cannot be read and `keep_bad` is not set; and why images cannot be read, by row.
    """
    short_side = kept_short_side(largest_size)
    folder = cache / f"images-{cache_key(paths, short_side, pixel_range)}"
    if not (folder / "index.npz").exists():
        make_folder(cache)
        with FileLock(f"{folder}.lock"):
            # Another process may have built it in the meantime.
            if not (folder / "index.npz").exists():
                bad = _build(folder, paths, short_side, pixel_range, label, keep_bad)
                if bad and not keep_bad:
                    return None, bad
    images = Images(folder, paths, short_side, pixel_range)
    if images.bad and not keep_bad:
        return None, images.bad
    if not images.is_cached:
        say(
            f"the decoded {label} images do not fit on the disk, so they are decoded on the fly; to cache "
            f"them, free some space and delete {folder}"
        )
    return images, images.bad


def kept_short_side(largest_size: int) -> int:
    """The largest shorter side, in pixels, of a cached image: enough that crops are still sharp."""
    return int(1.5 * largest_size)


def cache_key(paths: Sequence[Path], short_side: int, pixel_range: Sequence[float] | None = None) -> str:
    """Names a cache by everything its content depends on; a changed file has a different size or time."""
    about = f"{FORMAT_VERSION} {short_side} {pixel_range and tuple(pixel_range)} {len(paths)}"
    digest = blake2b(about.encode(), digest_size=12)
    for path in paths:
        stat = path.stat()
        digest.update(f"\n{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _build(
    folder: Path,
    paths: Sequence[Path],
    short_side: int,
    pixel_range: Sequence[float] | None,
    label: str,
    keep_bad: bool,
) -> dict[int, str]:
    """Decodes all files into `folder`, which appears only when complete; returns why images cannot be read, by row."""
    for left_over in folder.parent.glob(f"{folder.name}.part*"):  # from a build that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    part = folder.with_name(f"{folder.name}.part{os.getpid()}")
    part.mkdir(parents=True)
    try:
        with disk_errors(folder):
            bad = _decode_into(part, paths, short_side, pixel_range, label)
        if keep_bad or not bad:
            shutil.rmtree(folder, ignore_errors=True)  # it may exist without an index
            part.replace(folder)
        return bad
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _decode_into(
    part: Path, paths: Sequence[Path], short_side: int, pixel_range: Sequence[float] | None, label: str
) -> dict[int, str]:
    """Writes all decoded images one after the other, and an index of them."""
    bad: dict[int, str] = {}
    brightest: dict[int, int] = {}  # the largest level of each 16-bit image
    shapes = np.zeros((len(paths), 2), np.int64)
    hashes = np.zeros(len(paths), "U32")
    binary = part / "images.bin"
    fits = True
    with binary.open("wb") as file:
        decoded = decode_all(paths, short_side, pixel_range)
        for row, image in enumerate(progress(decoded, len(paths), f"decoding {label} images", "img")):
            if isinstance(image, BadImageError):
                bad[row] = str(image)
                continue
            shapes[row], hashes[row] = image.pixels.shape[:2], image.pixel_hash.hex()
            if image.is_deep:
                brightest[row] = int(image.pixels.max())
            if fits and shutil.disk_usage(part).free < FREE_DISK_RESERVE:
                fits = False
                file.truncate(0)
            if fits:
                file.write(image.pixels.data)
        file.flush()
        os.fsync(file.fileno())
    if not fits:
        binary.unlink()
    if brightest and np.median([*brightest.values()]) < DIM_BELOW:
        bad |= dict.fromkeys(brightest, DIM)
    sizes = shapes.prod(axis=1) * 3
    reasons = np.array([bad.get(row, "") for row in range(len(paths))])
    with (part / "index.npz").open("wb") as file:
        np.savez(file, offsets=np.cumsum(sizes) - sizes, shapes=shapes, pixel_hashes=hashes, reasons=reasons)
        os.fsync(file.fileno())
    return bad
