"""Images decoded once, checked while they are, kept as uint8 in a memory-mapped cache that all runs share."""

import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps, UnidentifiedImageError

from scenes.competition.rows import Table, problem_for_rows
from scenes.console import Problem, progress, say
from scenes.environment import usable_cores
from scenes.files import disk_errors, make_folder

FORMAT_VERSION = 5
CHUNK = 8  # images a thread decodes at a time
AHEAD = 2  # chunks that wait for a thread or to be written
FREE_DISK_RESERVE = 2**30
MAX_PIXELS = 178_956_970  # Pillow's own limit: more in one file is an attack, not a picture
# In a JPEG's pixel data 0xFF stands before 0 or a restart marker; before anything else a new segment begins.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
JPEG_SCAN, JPEG_END = 0xDA, b"\xff\xd9"
JPEG_METADATA = {*range(0xE0, 0xF0), 0xFE} - {0xEE}  # application segments and comments; Adobe's says what colours are
EXIF, EXIF_ORIENTATION = b"Exif\0\0", 0x112
LARGE_JPEG = 1024  # pixels of the shorter side
COLOR = getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR)  # OpenCV makes RGB from 4.11 on; before it, BGR
# What a large JPEG can be shrunk by while it is decoded, and OpenCV's flag for it, which is grayscale without COLOR.
REDUCED = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)
PNG_END = b"IEND\xaeB`\x82"
MISSING = "no such file"


class BadImageError(Exception):
    """A file that is not a whole, readable image."""


class Decoded(NamedTuple):
    """One image: RGB uint8 of shape (height, width, 3), and a hash that no short side changes.

    The hash is of the pixels before any resizing; of a JPEG, of what they are made from: its data without metadata
    (but for the orientation), since large ones are never decoded whole.
    """

    pixels: np.ndarray
    pixel_hash: bytes


def decode(path: Path, short_side: int | None = None) -> Decoded:
    """Reads an image file as RGB, upright (EXIF), 8 bits a channel; transparency is dropped.

    A large JPEG of at least twice the size wanted leaves the decoder at a half, a quarter or an eighth of it already.

    Args:
        path: A JPEG, PNG or anything else Pillow reads, whatever its name says.
        short_side: Shrink so that the shorter side has this many pixels; never enlarge.

    Raises:
        BadImageError: If the file is missing, empty, cut off, damaged, too large or no image.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise BadImageError(getattr(error, "strerror", None) or str(error)) from None
    if not data:
        raise BadImageError("empty file")
    pixels, digest = _decode_jpeg(data, short_side) if data[:3] == b"\xff\xd8\xff" else _decode_other(data)
    height, width = pixels.shape[:2]
    if short_side and min(height, width) > short_side:
        scale = short_side / min(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return Decoded(pixels, digest)


def _decode_jpeg(data: bytes, short_side: int | None) -> Decoded:
    """By OpenCV, the fastest; but some of its versions decode half a file to half a picture."""
    height, width, start = _scan_jpeg(data)
    _check_size(height, width)
    scale = min(height, width) // short_side if short_side and min(height, width) >= LARGE_JPEG else 1
    reduced = next((flag for least, flag in REDUCED if scale >= least), 0)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), reduced | COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise BadImageError("damaged JPEG")
    if COLOR == cv2.IMREAD_COLOR:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    turned = bytes([_orientation(data[:start])])
    return Decoded(pixels, blake2b(memoryview(data)[start:], digest_size=16, person=turned).digest())


def _orientation(metadata: bytes) -> int:
    """How a JPEG's metadata says the picture is turned: 1 to 8, 1 being upright."""
    exif, at = Image.Exif(), metadata.find(EXIF)
    if at < 0:
        return 1
    try:
        exif.load(metadata[at:])
        turned = exif.get(EXIF_ORIENTATION, 1)
    except Exception:  # of many kinds, where the metadata is damaged
        return 1
    return int(turned) if turned in range(1, 9) else 1


def _decode_other(data: bytes) -> Decoded:
    """By Pillow: OpenCV's versions differ in what they read and in whether they turn it upright."""
    if data.startswith(b"\x89PNG") and PNG_END not in data:
        raise BadImageError("cut off: the PNG has no end")
    try:
        with Image.open(BytesIO(data)) as opened:
            _check_size(opened.height, opened.width)
            image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits of gray, which Pillow would clip instead of scale
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        if image.mode == "F":
            raise BadImageError("pixels that are not 8 or 16 bits")
        pixels = np.asarray(image.convert("RGB"))
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS // 10**6} million pixels") from None
    except Exception:  # of many kinds: each of Pillow's readers has its own
        raise BadImageError("damaged or cut off") from None
    height, width = pixels.shape[:2]
    return Decoded(pixels, blake2b(pixels.data, digest_size=16, person=f"{height}x{width}".encode()).digest())


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise BadImageError(f"more than {MAX_PIXELS // 10**6} million pixels")


def _scan_jpeg(data: bytes) -> tuple[int, int, int]:
    """Walks a JPEG's segments up to its pixel data; so no thumbnail's end can be taken for the picture's.

    Returns:
        Height, width, and where the metadata at its beginning ends.

    Raises:
        BadImageError: If there is no end-of-image marker behind that.
    """
    height = width = start = 0
    at = 2
    while found := JPEG_MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if not start and marker not in JPEG_METADATA:
            start = found.start()
        if marker == JPEG_SCAN:
            if data.rfind(JPEG_END, at) < 0:
                break
            return height, width, start
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(data[at + 3 : at + 5], "big")
            width = int.from_bytes(data[at + 5 : at + 7], "big")
        at += int.from_bytes(data[at : at + 2], "big")
    raise BadImageError("cut off: the JPEG has no end")


class Pictures(Protocol):
    """Images by row, RGB, uint8, shape (height, width, 3): what batches are made of."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> np.ndarray: ...


class Images:
    """Decoded images by position, cheap to send to worker processes.

    Attributes:
        pixel_hashes: (n,) array of 32 hexadecimal digits; equal for identical images, see `Decoded`.
        bad: What is wrong with those that could not be read, by row.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], short_side: int) -> None:
        self._file = folder / "images.bin"
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            self._offsets, self._shapes = index["offsets"], index["shapes"]
            self.pixel_hashes: np.ndarray = index["pixel_hashes"]
            self.bad = {row: str(why) for row, why in enumerate(index["reasons"]) if why}
        self.is_cached = self._file.exists()
        self._paths = [] if self.is_cached else list(paths)
        self._short_side = short_side
        self._bytes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, row: int) -> np.ndarray:
        """RGB, uint8, shape (height, width, 3); read-only."""
        if not self.is_cached:
            return decode(self._paths[row], self._short_side).pixels
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


def read_images(table: Table, size: int, cache: Path, label: str) -> tuple[Images | None, list[Problem]]:
    """Opens a table's images, or says which rows cannot be read; `read_train` has named the missing files already.

    Args:
        table: The rows.
        size: The largest image size in pixels the run asks for.
        cache: The folder of all caches.
        label: What to call these images in messages.
    """
    present = _present(table)
    if not present:
        return None, []
    images, bad = open_images([table.paths[row] for row in present], size, cache, label)
    problems = unreadable_rows(table, {present[at]: why for at, why in bad.items()})
    return (images if len(present) == len(table) else None), problems


def unreadable_rows(table: Table, reasons: Mapping[int, str]) -> list[Problem]:
    """Makes a problem of each kind of damage among rows; `read_train` has named the missing files already."""
    problems: list[Problem] = []
    for reason in sorted({*reasons.values()} - {MISSING}):
        rows = [row for row, why in reasons.items() if why == reason]
        what, remedy = f"with an unreadable image ({reason})", "get the file again or take the row out (data.drop)"
        problems += problem_for_rows(table, rows, table.names, what, remedy)
    return problems


def read_good_images(table: Table, size: int, cache: Path, label: str) -> tuple[Images | None, dict[int, str]]:
    """Opens those of a table's images that can be read; arguments as `read_images`'.

    Returns:
        Their images in the table's order, None if there are none; and why each of the other rows is left out.
    """
    present = _present(table)
    reasons = dict.fromkeys(sorted(set(range(len(table))) - set(present)), MISSING)
    if not present:
        return None, reasons
    images, bad = open_images([table.paths[row] for row in present], size, cache, label, keep_bad=True)
    assert images is not None
    reasons |= {present[at]: why for at, why in bad.items()}
    good = [at for at in range(len(present)) if at not in bad]
    return images.take(good) if good else None, dict(sorted(reasons.items()))


def _present(table: Table) -> list[int]:
    return [row for row, path in enumerate(table.paths) if os.path.isfile(path)]  # noqa: PTH113 - it never raises


def open_images(
    paths: Sequence[Path], largest_size: int, cache: Path, label: str, keep_bad: bool = False
) -> tuple[Images | None, dict[int, str]]:
    """Opens the cache of these files, building it first if there is none.

    Args:
        paths: The image files, in order.
        largest_size: The largest image size in pixels the run asks for; more than 1.5 times that is not kept.
        cache: The folder of all caches.
        label: What to call these images in messages.
        keep_bad: Open the images although some cannot be read; none of these may be asked for.

    Returns:
        The images, None if some cannot be read and `keep_bad` is not set; what is wrong with each of these by row.
    """
    short_side = int(1.5 * largest_size)
    folder = cache / f"images-{cache_key(paths, short_side)}"
    if not (folder / "index.npz").exists():
        make_folder(cache)
        with FileLock(f"{folder}.lock"):
            # Another process may have built it while this one waited.
            if not (folder / "index.npz").exists():
                bad = _build(folder, paths, short_side, label, keep_bad)
                if bad and not keep_bad:
                    return None, bad
    images = Images(folder, paths, short_side)
    if images.bad and not keep_bad:
        return None, images.bad
    if not images.is_cached:
        say(
            f"the decoded {label} images did not fit on the disk: they are decoded anew each time they are needed. "
            f"Once there is room, delete {folder}"
        )
    return images, images.bad


def cache_key(paths: Sequence[Path], short_side: int) -> str:
    """Names a cache by all that decides its content; a changed file changes its size or time."""
    digest = blake2b(f"{FORMAT_VERSION} {short_side} {len(paths)}".encode(), digest_size=12)
    for path in paths:
        stat = path.stat()
        digest.update(f"\n{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _build(folder: Path, paths: Sequence[Path], short_side: int, label: str, keep_bad: bool) -> dict[int, str]:
    """Decodes all files into `folder`, which appears only when whole; returns what is wrong with each bad row."""
    for left_over in folder.parent.glob(f"{folder.name}.part*"):  # of a build that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    part = folder.with_name(f"{folder.name}.part{os.getpid()}")
    part.mkdir(parents=True)
    try:
        with disk_errors(folder):
            bad = _decode_all(part, paths, short_side, label)
        if keep_bad or not bad:
            shutil.rmtree(folder, ignore_errors=True)  # there, but without an index
            part.replace(folder)
        return bad
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _decode_all(part: Path, paths: Sequence[Path], short_side: int, label: str) -> dict[int, str]:
    bad: dict[int, str] = {}
    shapes = np.zeros((len(paths), 2), np.int64)
    hashes = np.zeros(len(paths), "U32")
    chunks = progress(_chunks(paths, short_side), -(-len(paths) // CHUNK), f"decoding {label} images", "img", CHUNK)
    binary = part / "images.bin"
    fits = True
    with binary.open("wb") as file:
        for number, chunk in enumerate(chunks):
            whole = []
            for row, result in enumerate(chunk, number * CHUNK):
                if isinstance(result, BadImageError):
                    bad[row] = str(result)
                    continue
                shapes[row], hashes[row] = result.pixels.shape[:2], result.pixel_hash.hex()
                whole.append(result.pixels.data)
            if fits and shutil.disk_usage(part).free < FREE_DISK_RESERVE:
                fits = False
                file.truncate(0)
            if fits:
                file.write(b"".join(whole))
        file.flush()
        os.fsync(file.fileno())
    if not fits:
        binary.unlink()
    sizes = shapes.prod(axis=1) * 3
    reasons = np.array([bad.get(row, "") for row in range(len(paths))])
    with (part / "index.npz").open("wb") as file:
        np.savez(file, offsets=np.cumsum(sizes) - sizes, shapes=shapes, pixel_hashes=hashes, reasons=reasons)
        os.fsync(file.fileno())
    return bad


def _chunks(paths: Sequence[Path], short_side: int) -> Iterator[list[Decoded | BadImageError]]:
    """Decodes on all cores, in order; a thread has several at a time, else it mostly waits for its turn in Python."""

    def attempt(path: Path) -> Decoded | BadImageError:
        try:
            return decode(path, short_side)
        except BadImageError as error:
            return error

    threads = usable_cores()
    begun: deque[Future[list[Decoded | BadImageError]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for start in range(0, len(paths), CHUNK):
            begun.append(pool.submit(lambda chunk: [*map(attempt, chunk)], paths[start : start + CHUNK]))
            # No more than that, so that a slow disk cannot let decoded images pile up in memory.
            if len(begun) > threads + AHEAD:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
