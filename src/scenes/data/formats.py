"""What image files' bytes say about them: whole or cut off, metadata or pixels, which format."""

import re
from typing import NamedTuple

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Inside a JPEG's compressed data 0xFF is followed by 0 or a restart marker; anything else begins a new segment.
JPEG_SEGMENT = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
JPEG_SCAN, JPEG_END = 0xDA, b"\xff\xd9"
JPEG_METADATA = {*range(0xE0, 0xF0), 0xFE} - {0xEE}  # application segments and comments; Adobe's (EE) affects colours


class BadImageError(Exception):
    """A file that is not a whole, readable image."""


class JpegHeader(NamedTuple):
    """What a JPEG says before its first scan.

    Attributes:
        height: In pixels, before any rotation.
        width: Likewise.
        channels: 1 gray, 3 colours, 4 CMYK.
        metadata_end: Where in the file the metadata ends.
    """

    height: int
    width: int
    channels: int
    metadata_end: int


def jpeg_header(data: bytes) -> JpegHeader:
    """Reads a JPEG's segments up to its first scan, so that a thumbnail's end is not mistaken for the image's.

    Raises:
        BadImageError: If there is no end-of-image marker after the start of that scan.
    """
    height = width = channels = metadata_end = 0
    at = 2
    while found := JPEG_SEGMENT.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker == JPEG_SCAN and data.find(JPEG_END, at) >= 0:
            return JpegHeader(height, width, channels, metadata_end or found.start())
        if marker == JPEG_SCAN:
            break
        if marker in JPEG_FRAMES:
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (3, 5))
            channels = int.from_bytes(data[at + 7 : at + 8], "big")
        if marker not in JPEG_METADATA:
            metadata_end = metadata_end or found.start()
        at += int.from_bytes(data[at : at + 2], "big")
    raise BadImageError("cut off: the JPEG has no end")


def png_without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """Keeps the chunks that define pixels, so that no text, colour profile or broken EXIF stops the decoder.

    Returns:
        The PNG, and its EXIF metadata.

    Raises:
        BadImageError: If it has no end.
    """
    kept, exif, at = [PNG], b"", len(PNG)
    while (end := at + 12 + int.from_bytes(data[at : at + 4], "big")) <= len(data):
        kind = data[at + 4 : at + 8]
        if kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        if kind[:1].isupper():  # by the PNG specification, the others are optional
            kept.append(data[at:end])
        if kind == b"IEND":
            return b"".join(kept), exif
        at = end
    raise BadImageError("cut off: the PNG has no end")


def kind_of_file(data: bytes) -> str:
    """Says what a file that no decoder can read seems to be, from its first bytes."""
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    start = data[:200].lstrip().lower()
    if brand in (b"avif", b"avis"):
        return "an AVIF image, which needs pillow 11.3 or newer: update it or convert the image"
    if brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
        return "a HEIC image, which cannot be read here: convert it to JPEG or PNG"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "a JPEG XL image, which cannot be read here: convert it to JPEG or PNG"
    if data[128:132] == b"DICM":
        return "a DICOM file, which cannot be read here: convert it to PNG"
    if start.startswith((b"<svg", b"<?xml")):
        return "not an image but XML (SVG?): convert it to PNG"
    if start.startswith(b"<"):
        return "not an image but a web page: the download failed"
    if start.startswith(b"version https://git-lfs"):
        return "not an image but a Git LFS pointer: git lfs pull gets the image"
    return "not an image"
