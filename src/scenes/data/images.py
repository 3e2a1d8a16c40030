"""Images decoded once, checked while they are, kept as uint8 in a memory-mapped cache that all runs share."""

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from filelock import FileLock
from PIL import Image, ImageFile

from scenes.console import Meter, Problem, say
from scenes.data.competition import Table, problem_for_rows

FORMAT_VERSION = 1
CHUNK = 256
FREE_DISK_RESERVE = 2**30
MAX_PIXELS = 178_956_970  # Pillow's own limit: more in one file is an attack, not a picture


class BadImageError(Exception):
    """A file that is not a whole, readable image."""


class Decoded(NamedTuple):
    """One image: RGB uint8 of shape (height, width, 3) and the hash of its pixels before any resizing."""

    pixels: np.ndarray
    pixel_hash: bytes


def decode(path: Path, short_side: int | None = None) -> Decoded:
    """Reads an image file as RGB, upright (EXIF), 8 bits a channel.

    Args:
        path: A JPEG, PNG or anything else OpenCV reads, whatever its name says.
        short_side: Shrink so that the shorter side has this many pixels; never enlarge.

    Raises:
        BadImageError: If the file is missing, empty, cut off, damaged, too large or no image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImageError(error.strerror or str(error)) from None
    _check_whole(data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise BadImageError(f"not decodable ({error.err})") from None
    if pixels is None:
        raise BadImageError("not an image, or damaged")
    pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    digest = blake2b(pixels, digest_size=16, person=f"{pixels.shape[0]}x{pixels.shape[1]}".encode()[:16]).digest()
    height, width = pixels.shape[:2]
    if short_side and min(height, width) > short_side:
        scale = short_side / min(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return Decoded(pixels, digest)


def _check_whole(data: bytes) -> None:
    """Refuses cut-off files, which OpenCV versions decode to half a picture, and pixel bombs."""
    if not data:
        raise BadImageError("empty file")
    if data[:3] == b"\xff\xd8\xff":
        height, width, whole = _scan_jpeg(data)
        if not whole:
            raise BadImageError("cut off: the JPEG has no end")
        if height * width > MAX_PIXELS:
            raise BadImageError(f"{width}×{height} pixels are too many")
        return
    try:
        with Image.open(BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"{image.width}×{image.height} pixels are too many")
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError(f"damaged or no image ({str(error).splitlines()[0]})") from None


def _scan_jpeg(data: bytes) -> tuple[int, int, bool]:
    """Walks a JPEG's segments to its pixel data; a thumbnail inside a segment cannot be taken for the end.

    Returns:
        Height, width, and whether an end-of-image marker follows the pixel data.
    """
    height = width = 0
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            width = int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + length
        if marker == 0xDA:
            return height, width, data.find(b"\xff\xd9", at) >= 0
    return height, width, False


class Images:
    """Decoded images by position, cheap to send to worker processes.

    Attributes:
        pixel_hashes: (n,) array of 32 hexadecimal digits; equal for images with equal pixels.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], short_side: int) -> None:
        self._paths, self._short_side = paths, short_side
        self._file = folder / "images.bin"
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            self._offsets, self._shapes = index["offsets"], index["shapes"]
            self.pixel_hashes: np.ndarray = index["pixel_hashes"]
        self.is_cached = self._file.exists()
        self._bytes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> np.ndarray:
        """RGB, uint8, shape (height, width, 3); read-only."""
        if not self.is_cached:
            return decode(self._paths[row], self._short_side).pixels
        if self._bytes is None:
            self._bytes = np.memmap(self._file, np.uint8, "r")
        height, width = self._shapes[row]
        start = self._offsets[row]
        return self._bytes[start : start + height * width * 3].reshape(height, width, 3)

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
    present = [row for row, path in enumerate(table.paths) if path.is_file()]
    images, bad = open_images([table.paths[row] for row in present], size, cache, label)
    problems: list[Problem] = []
    for reason in sorted(set(bad.values())):
        rows = [present[at] for at, why in bad.items() if why == reason]
        what, remedy = f"with an unreadable image ({reason})", "get the file again or take the row out"
        problems += problem_for_rows(table.csv, rows, table.names, what, remedy)
    return (images if len(present) == len(table) else None), problems


def open_images(
    paths: Sequence[Path], largest_size: int, cache: Path, label: str
) -> tuple[Images | None, dict[int, str]]:
    """Opens the cache of these files, building it first if there is none.

    Args:
        paths: The image files, in order.
        largest_size: The largest image size in pixels the run asks for; more than 1.5 times that is not kept.
        cache: The folder of all caches.
        label: What to call these images in messages.

    Returns:
        The images, and an empty dict; or None and what is wrong with each unreadable row.
    """
    short_side = int(1.5 * largest_size)
    folder = cache / f"images-{_key(paths, short_side)}"
    if not (folder / "index.npz").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            # Another process may have built it while this one waited.
            if not (folder / "index.npz").exists() and (bad := _build(folder, paths, short_side, label)):
                return None, bad
    return Images(folder, paths, short_side), {}


def _key(paths: Sequence[Path], short_side: int) -> str:
    """Names a cache by all that decides its content; a changed file changes its size or time."""
    digest = blake2b(f"{FORMAT_VERSION} {short_side} {len(paths)}".encode(), digest_size=12)
    for path in paths:
        stat = path.stat()
        digest.update(f"\n{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _build(folder: Path, paths: Sequence[Path], short_side: int, label: str) -> dict[int, str]:
    """Decodes all files into `folder`, which appears only when whole; returns what is wrong with each bad row."""
    for left_over in folder.parent.glob(f"{folder.name}.part*"):  # of a build that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    part = folder.with_name(f"{folder.name}.part{os.getpid()}")
    part.mkdir(parents=True)
    try:
        bad = _decode_all(part, paths, short_side, label)
        if not bad:
            part.replace(folder)
        return bad
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _decode_all(part: Path, paths: Sequence[Path], short_side: int, label: str) -> dict[int, str]:
    bad: dict[int, str] = {}
    shapes = np.zeros((len(paths), 2), np.int64)
    hashes = np.zeros(len(paths), "S32")

    def attempt(row: int) -> Decoded | None:
        try:
            return decode(paths[row], short_side)
        except BadImageError as error:
            bad[row] = str(error)
            return None

    meter = Meter(len(paths), f"decoding {label} images", "img")
    binary = part / "images.bin"
    fits = True
    with binary.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        # In chunks, so that a slow disk cannot let decoded images pile up in memory.
        for start in range(0, len(paths), CHUNK):
            for row, decoded in enumerate(pool.map(attempt, range(start, min(start + CHUNK, len(paths)))), start):
                if decoded:
                    shapes[row] = decoded.pixels.shape[:2]
                    hashes[row] = decoded.pixel_hash.hex().encode()
                    if fits:
                        file.write(decoded.pixels.tobytes())
                meter.advance()
            if fits and shutil.disk_usage(part).free < FREE_DISK_RESERVE:
                fits = False
                file.truncate(0)
        file.flush()
        os.fsync(file.fileno())
    meter.close()
    if not fits:
        binary.unlink()
        say(f"under 1 GiB of disk is left: the {label} images are decoded anew each time they are needed")
    sizes = shapes.prod(axis=1) * 3
    np.savez(part / "index.npz", offsets=np.cumsum(sizes) - sizes, shapes=shapes, pixel_hashes=hashes.astype("U32"))
    return dict(sorted(bad.items()))
