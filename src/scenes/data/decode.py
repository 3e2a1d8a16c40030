"""Decodes image files to upright 8-bit RGB; whether a file can be read depends on its pixels, never on its metadata."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from scenes.data.formats import JPEG, PNG, TIFF, BadImageError, jpeg_header, kind_of_file, png_without_metadata
from scenes.environment import usable_cores

# We report what is wrong with a file, once.
warnings.filterwarnings("ignore", module="PIL")
# OpenCV 4 and 5 have it in different places.
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)  # silent
CHUNK = 8  # images a thread decodes at a time; with fewer it mostly waits for Python's lock
MAX_PIXELS = 178_956_970  # Pillow's own limit; a file that claims more is an attack
TOO_LARGE = f"more than {MAX_PIXELS // 10**6} million pixels"
LARGE_JPEG = 1024  # from this shorter side in pixels on, a JPEG is shrunk while it is decoded
COLOR = getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR)  # OpenCV decodes to RGB from 4.11 on; before that, BGR
# Factors by which OpenCV can shrink a JPEG, and their flags (grayscale without COLOR).
REDUCED = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)
EXIF, EXIF_ORIENTATION = b"Exif\0\0", 0x112
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLES, TIFF_EXTRA, TIFF_SAMPLE_FORMAT = 258, 262, 277, 338, 339
ALPHA = (1, 2)  # extra samples that are not bands of their own
BIG_TIFF = 43  # its version
WHITE_IS_ZERO, UNSIGNED, SIGNED = 0, 1, 2
UNSCALED = "pixels without data.pixel_range"


class Decoded(NamedTuple):
    """One image.

    Attributes:
        pixels: RGB, uint8, shape (height, width, 3).
        pixel_hash: Equal for identical images, whatever size was requested: of the pixels before any resizing; for a
            JPEG, of its data without metadata (but with the orientation), as large ones are never decoded at full size.
        is_deep: Whether 16 bits were scaled by the full range of the file's type.
    """

    pixels: np.ndarray
    pixel_hash: bytes
    is_deep: bool = False


def decode(path: Path, short_side: int | None = None, pixel_range: Sequence[float] | None = None) -> Decoded:
    """Reads an image file as RGB, upright (EXIF), 8 bits per channel; transparency is dropped.

    A large JPEG is shrunk to a half, a quarter or an eighth by the decoder if that is still larger than requested.

    Args:
        path: A JPEG, PNG or anything else Pillow reads, whatever its suffix is.
        short_side: Shrink the shorter side to this many pixels; images are never enlarged.
        pixel_range: The values that become 0 and 255 in images of more than 8 bits per channel. Without it, unsigned 16
            bits are scaled by their full range, and other kinds are rejected.

    Raises:
        BadImageError: If the file is missing, empty, cut off, damaged, too large, not an image, or of a kind that
            cannot be decoded faithfully.
    """
    data = _read(path)
    if data.startswith(JPEG):
        decoded = _decode_jpeg(data, short_side)
    else:
        values = _stored_values(data)
        pixels = np.ascontiguousarray(_as_uint8(values, pixel_range))
        shape = f"{pixels.shape[0]}x{pixels.shape[1]}".encode()
        digest = blake2b(pixels.data, digest_size=16, person=shape).digest()
        decoded = Decoded(pixels, digest, is_deep=values.dtype != np.uint8 and pixel_range is None)
    height, width = decoded.pixels.shape[:2]
    if short_side and min(height, width) > short_side:
        scale = short_side / min(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return decoded._replace(pixels=cv2.resize(decoded.pixels, size, interpolation=cv2.INTER_AREA))
    return decoded


def decode_all(
    paths: Iterable[Path], short_side: int | None, pixel_range: Sequence[float] | None = None, ahead: int = 2 * CHUNK
) -> Iterator[Decoded | BadImageError]:
    """Decodes files on all cores, in order.

    Args:
        paths: The files; they are taken from it as they are decoded.
        short_side: See `decode`.
        pixel_range: See `decode`.
        ahead: How many decoded images may wait, besides those being decoded.

    Yields:
        Each file's image, or why there is none.
    """

    def attempt(path: Path) -> Decoded | BadImageError:
        try:
            return decode(path, short_side, pixel_range)
        except BadImageError as error:
            return error

    remaining = iter(paths)
    threads = usable_cores()
    begun: deque[Future[list[Decoded | BadImageError]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            while len(begun) < threads + -(-ahead // CHUNK) and (chunk := list(islice(remaining, CHUNK))):
                begun.append(pool.submit(lambda chunk: [*map(attempt, chunk)], chunk))
            if not begun:
                return
            yield from begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def value_range(paths: Iterable[Path]) -> tuple[float, float]:
    """Finds the smallest and the largest value stored in image files (not JPEGs), for data.pixel_range.

    Raises:
        BadImageError: If a file cannot be read.
    """
    low, high = np.inf, -np.inf
    for path in paths:
        values = _stored_values(_read(path))
        low, high = min(low, float(np.nanmin(values))), max(high, float(np.nanmax(values)))
    return low, high


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise BadImageError(getattr(error, "strerror", None) or str(error)) from None
    if not data:
        raise BadImageError("empty file")
    return data


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise BadImageError(TOO_LARGE)


def _orientation(exif: bytes) -> int:
    """The orientation from EXIF metadata, 1 to 8; 1 (upright) if the metadata is invalid."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        orientation = tags.get(EXIF_ORIENTATION, 1)
    except Exception:  # Pillow raises many kinds
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


# --------------------------------------------------------------------------------------------------------- JPEG


def _decode_jpeg(data: bytes, short_side: int | None) -> Decoded:
    """Uses OpenCV, the fastest; the header is checked first, as some versions decode half a file to half an image."""
    header = jpeg_header(data)
    _check_size(header.height, header.width)
    short = min(header.height, header.width)
    scale = short // short_side if short_side and short >= LARGE_JPEG else 1
    reduced = next((flag for least, flag in REDUCED if scale >= least), 0)
    at = data.find(EXIF, 0, header.metadata_end)
    orientation = _orientation(data[at : header.metadata_end]) if at >= 0 else 1
    pixels: np.ndarray | None
    if header.channels == 4:  # CMYK: OpenCV takes every such file for one of Photoshop's
        pixels = _by_pillow(data)
    else:
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), reduced | COLOR)
        except cv2.error:
            pixels = None
    if pixels is None:
        raise BadImageError("damaged JPEG, or one that is lossless or has 12 bits")
    if header.channels != 4 and COLOR == cv2.IMREAD_COLOR:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    digest = blake2b(memoryview(data)[header.metadata_end :], digest_size=16, person=bytes([orientation]))
    return Decoded(np.ascontiguousarray(pixels), digest.digest())


# ------------------------------------------------------------------------------------------------ other formats


def _stored_values(data: bytes) -> np.ndarray:
    """Decodes any file but a JPEG: uint8, shape (h, w, 3), or wider numbers as stored, (h, w) or (h, w, 3)."""
    if not data.startswith(PNG):
        return _by_pillow(data)
    data, exif = png_without_metadata(data)
    return _upright(_by_pillow(data), _orientation(exif))


def _by_pillow(data: bytes) -> np.ndarray:
    """Decodes with Pillow, except for deep colours, which it cuts to 8 bits or cannot read at all."""
    try:
        with Image.open(BytesIO(data)) as image:
            _check_size(image.height, image.width)
            is_deep_color = image.mode[0] != "I" and ";16" in str(image.tile)
            names_white = image.format == "PPM" and image.tile[0][0] != "raw"
            image.load()
            tags = getattr(image, "tag_v2", {})
            sample_format = tags.get(TIFF_SAMPLE_FORMAT, (UNSIGNED,))[0]
            if is_deep_color or (image.mode == "L" and sample_format == SIGNED):
                return _by_opencv(data)
            if image.mode[0] not in "IF":
                values = np.asarray(image.convert("RGB"))
            elif names_white and image.mode == "I":
                values = (np.asarray(image) >> 8).astype(np.uint8)  # Pillow scales it to 16 bits
            else:
                values = _gray_values(image, sample_format)
            # Pillow has already rotated TIFFs, and PNGs come without EXIF.
            return _upright(values, _orientation(image.info.get("exif", b"")))
    except BadImageError:
        raise
    except Image.DecompressionBombError:
        raise BadImageError(TOO_LARGE) from None
    except Exception as error:  # of many kinds: each of Pillow's readers raises its own
        if data.startswith(TIFF):
            return _by_opencv(data)
        is_unknown = isinstance(error, UnidentifiedImageError)
        raise BadImageError(kind_of_file(data) if is_unknown else "damaged or cut off") from None


def _gray_values(image: Image.Image, sample_format: int) -> np.ndarray:
    """The values of a gray image of more than 8 bits, in the type that the file declares."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if image.format == "PPM" and image.mode == "I":
        return values.astype(np.uint16)
    if image.mode == "I" and tags.get(TIFF_BITS) == (32,) and sample_format == UNSIGNED:
        return values.view(np.uint32)
    if image.mode == "I" and tags.get(TIFF_BITS) == (16,):
        return values.astype(np.int16)
    if values.dtype == np.uint16 and tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:
        return 65535 - values
    return values


def _by_opencv(data: bytes) -> np.ndarray:
    """Decodes deep colours, and TIFFs that Pillow cannot read; OpenCV rotates TIFFs upright."""
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        values = None
    if values is None:
        raise BadImageError("cut off, damaged, or a TIFF of a kind that cannot be read here: convert it to PNG")
    _check_size(*values.shape[:2])
    if values.ndim == 3:
        return values[..., 2::-1]  # from BGR or BGRA
    bands, is_inverted = _bands(data)
    if bands > 1:  # which OpenCV mixes to gray, or leaves out
        raise BadImageError(f"a TIFF of {bands} bands that are not marked as RGB: convert it to RGB")
    return 65535 - values if is_inverted and values.dtype == np.uint16 else values


def _bands(data: bytes) -> tuple[int, bool]:
    """How many bands besides alpha a TIFF that Pillow cannot open has, and whether 0 is white."""
    try:
        stream = BytesIO(data)
        is_big = BIG_TIFF in data[2:4]
        tags = ImageFileDirectory_v2(stream.read(16 if is_big else 8))
        stream.seek(tags.next)
        tags.load(stream)
        alphas = sum(kind in ALPHA for kind in tags.get(TIFF_EXTRA, ()))
        return tags.get(TIFF_SAMPLES, 1) - alphas, tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
    except Exception:  # not a TIFF, or damaged tags that OpenCV can still handle
        return 1, False


def _as_uint8(values: np.ndarray, pixel_range: Sequence[float] | None) -> np.ndarray:
    """Scales values to 8 bits if necessary; the result is RGB, shape (h, w, 3)."""
    if values.dtype == np.uint8:
        levels = values
    elif pixel_range:
        low, high = pixel_range
        exact = (values.astype(np.float64) - low) * (255 / (high - low))
        levels = np.nan_to_num(exact, nan=0).clip(0, 255).round().astype(np.uint8)
    elif values.dtype == np.uint16:
        levels = (values >> 8).astype(np.uint8)
    else:
        raise BadImageError(f"{values.dtype} {UNSCALED}")
    return levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, 2)
