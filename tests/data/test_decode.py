"""An image is decoded faithfully or refused with a reason that names the cause."""

import contextlib
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import scenes.data.decode as library
from drawn import encode, picture
from scenes.competition.find import IMAGE_SUFFIXES
from scenes.data.decode import BadImageError, decode


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A well-formed PNG with the given header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    """The JPEG with an additional metadata segment."""
    return jpeg[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + jpeg[2:]


def with_thumbnail(jpeg: bytes) -> bytes:
    """The JPEG with a whole smaller JPEG in its EXIF segment."""
    start = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
    return with_segment(jpeg, 0xE1, start + encode(picture(16, 16), "JPEG"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.jpg"


def decoded(file: Path, content: bytes, short_side: int | None = None) -> np.ndarray:
    file.write_bytes(content)
    return decode(file, short_side).pixels


def refusal(file: Path, content: bytes) -> str:
    file.write_bytes(content)
    with pytest.raises(BadImageError) as caught:
        decode(file)
    return str(caught.value)


RED = np.zeros((8, 12, 3), np.uint8)
RED[..., 0] = 255

# ---------------------------------------------------------------------------------------------------- decode


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_colours_are_in_the_order_red_green_blue_whatever_the_name_says(file: Path, kind: str) -> None:
    pixels = decoded(file, encode(RED, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (pixels.shape, pixels.dtype) == ((8, 12, 3), np.uint8)
    assert abs(pixels.astype(int) - RED).max() <= 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_jpegs_are_close_to_what_was_encoded(file: Path, options: dict[str, object]) -> None:
    pixels = decoded(file, encode(picture(), "JPEG", quality=95, **options))
    assert abs(pixels.astype(int) - picture()).mean() < 8


def test_gray_becomes_three_equal_channels(file: Path) -> None:
    gray = picture()[..., 0]
    assert (decoded(file, encode(gray, "PNG")) == gray[..., None]).all()
    jpeg = decoded(file, encode(gray, "JPEG"))
    assert jpeg.shape == (40, 60, 3)
    assert (jpeg == jpeg[..., :1]).all()
    assert (decoded(file, encode(Image.new("1", (3, 2), 1), "PNG")) == 255).all()


def test_transparency_is_dropped(file: Path) -> None:
    for opacity in (0, 100, 255):
        assert (decoded(file, encode(np.dstack([RED, np.full((8, 12), opacity, np.uint8)]), "PNG")) == RED).all()
    assert (decoded(file, encode(Image.new("LA", (4, 4), (200, 9)), "PNG")) == 200).all()
    assert (decoded(file, encode(Image.fromarray(RED).convert("P"), "PNG", transparency=0)) == RED).all()


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_16_bits_are_scaled_to_8(file: Path, shape: tuple[int, ...]) -> None:
    _, content = cv2.imencode(".png", np.full(shape, 40_000, np.uint16))
    pixels = decoded(file, content.tobytes())
    assert pixels.shape == (4, 5, 3)
    assert (pixels == 40_000 >> 8).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(file: Path, kind: str) -> None:
    assert abs(decoded(file, encode(Image.fromarray(RED).convert("CMYK"), kind)).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("kind", ["MPO", "TIFF"])
def test_the_first_of_several_images_in_a_file_is_read(file: Path, kind: str) -> None:
    content = encode(Image.fromarray(RED), kind, save_all=True, append_images=[Image.fromarray(255 - RED)])
    assert abs(decoded(file, content).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(file: Path, kind: str, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16, 0] = 255  # red at the top left
    back = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2)}
    back |= {6: np.rot90, 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1)}
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = np.ascontiguousarray(back[orientation](upright))
    pixels = decoded(file, encode(stored, kind, exif=exif, **({} if kind == "PNG" else {"quality": 100})))
    assert pixels.shape == upright.shape
    assert abs(pixels.astype(int) - upright).mean() < 6


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_read_as_its_first_frame(file: Path, kind: str) -> None:
    options = {"save_all": True, "append_images": [Image.fromarray(RED[..., ::-1].copy())]}
    pixels = decoded(
        file, encode(Image.fromarray(RED), kind, **options, **({"lossless": True} if kind == "WEBP" else {}))
    )
    assert (pixels == RED).all()


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((1, 1), 20, (1, 1)),
        ((5000, 1), 20, (5000, 1)),
        ((40, 60), 20, (20, 30)),
        ((60, 40), 20, (30, 20)),
        ((40, 60), 40, (40, 60)),
        ((40, 60), 41, (40, 60)),
        ((40, 60), 4000, (40, 60)),
        ((41, 59), 20, (20, 29)),
        ((40, 4000), 1, (1, 100)),
    ],
)
def test_images_shrink_to_the_short_side_and_never_grow(
    file: Path, size: tuple[int, int], short_side: int, expected: tuple[int, int]
) -> None:
    content = encode(picture(*size), "PNG")
    pixels = decoded(file, content, short_side)
    assert pixels.shape == (*expected, 3)
    assert abs(pixels.mean((0, 1)) - decoded(file, content).mean((0, 1))).max() < 3


def test_colours_are_the_same_without_opencvs_newer_flag(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(cv2.resize(picture(), (2048, 1024)), "JPEG")
    new = [decoded(file, content, side) for side in (None, 100)]
    monkeypatch.setattr(library, "COLOR", cv2.IMREAD_COLOR)
    for pixels, side in zip(new, (None, 100), strict=True):
        assert (decoded(file, content, side) == pixels).all()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("short_side", "is_reduced"), [(200, False), (161, False), (160, True), (75, True), (20, True)]
)
def test_a_large_jpeg_shrinks_in_the_decoder_to_nearly_the_same_image(
    file: Path, short_side: int, is_reduced: bool, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    content = encode(cv2.resize(picture(40, 60), (480, 320)), "JPEG", quality=95, exif=exif)
    monkeypatch.setattr(library, "LARGE_JPEG", 320)
    pixels = decoded(file, content, short_side)
    monkeypatch.setattr(library, "REDUCED", ())
    whole = decoded(file, content, short_side)
    assert pixels.shape == whole.shape
    assert min(pixels.shape[:2]) == short_side
    assert (pixels != whole).any() == is_reduced
    assert abs(pixels.astype(int) - whole).mean() < 3


# ------------------------------------------------------------------------------------------ more than 8 bits


def tiff(values: np.ndarray, *more: tuple[int, int, int, int]) -> bytes:
    """A little-endian TIFF with one strip of these grey values or colours, in their own type; `more` adds tags."""
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    body, bits = values.astype(values.dtype.newbyteorder("<")).tobytes(), 8 * values.dtype.itemsize
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: (3, channels, bits), 259: (3, 1, 1), 273: (4, 1, 0)}
    tags |= {262: (3, 1, 1 if channels == 1 else 2), 277: (3, 1, channels), 278: (4, 1, height), 279: (4, 1, len(body))}
    tags |= {339: (3, channels, sample_format)} | {tag: rest for tag, *rest in more}
    lists, start = b"", 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, (kind, count, value) in sorted(tags.items()):
        if count > 2:
            lists, value = lists + struct.pack(f"<{count}H", *[value] * count), start + len(lists)
        elif tag == 273:
            value = start + (4 * channels if channels > 2 else 0)
        entries += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + lists + body


def big_endian_tiff(values: np.ndarray, photometric: int) -> bytes:
    """A TIFF of big-endian 16-bit grey values."""
    (height, width), body = values.shape, values.astype(">u2").tobytes()
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height, 279: len(body)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + bytes(4) + body


RAMP = np.linspace(0, 1, 60).reshape(6, 10)  # 0 … 1
LEVELS = np.round(RAMP * 255)
DEEP = {
    "int16": (RAMP * 1400 - 1000).astype(np.int16),
    "int32": (RAMP * 255).round().astype(np.int32),
    "uint32": (RAMP * 4e9).astype(np.uint32),
    "float32": (RAMP - 0.5).astype(np.float32),
    "float64": RAMP * 1e-9,
    "int8": (RAMP * 255 - 128).round().astype(np.int8),
    "colours": np.stack([RAMP, RAMP[::-1], RAMP], 2).astype(np.float32),
}


@pytest.mark.parametrize("kind", DEEP)
def test_values_without_a_known_range_are_refused_by_name_and_scaled_by_a_given_one(file: Path, kind: str) -> None:
    values = DEEP[kind]
    name = str(values.dtype)
    assert name in refusal(file, tiff(values))
    low, high = library.value_range([file])
    assert (low, high) == (values.min(), values.max())
    pixels = decode(file, pixel_range=(low, high)).pixels
    expected = LEVELS if values.ndim == 2 else np.round(values[..., 0] * 255)
    assert abs(pixels[..., 0] - expected).max() <= 1
    assert abs(pixels[..., 1] - (expected if values.ndim == 2 else np.round(values[..., 1] * 255))).max() <= 1


def test_what_is_outside_the_range_is_black_or_white_and_what_is_no_number_is_black(file: Path) -> None:
    file.write_bytes(tiff(np.array([[-9, 0, 5, 10, 99, np.nan, np.inf]], np.float32)))
    pixels = decode(file, pixel_range=(0, 10)).pixels
    assert pixels[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0, 255]


@pytest.mark.parametrize("form", ["png", "tiff", "png colours", "png alpha", "tiff colours"])
def test_12_of_16_bits_use_all_of_8_with_a_range(file: Path, form: str) -> None:
    values = (RAMP * 4095).round().astype(np.uint16)
    if " " in form:
        values = np.stack([values, values[::-1], values // 2, values], 2)[..., : 4 if "alpha" in form else 3]
    file.write_bytes(cv2.imencode(".png", values)[1].tobytes() if "png" in form else tiff(values))
    first = 2 if "png" in form else 0  # OpenCV writes blue first
    assert decode(file).is_deep
    assert decode(file).pixels.max() == 4095 >> 8
    decoded = decode(file, pixel_range=(0, 4095))
    assert not decoded.is_deep
    assert (decoded.pixels[..., 1] == (LEVELS if values.ndim == 2 else LEVELS[::-1])).all()
    if values.ndim == 3:
        assert (decoded.pixels[..., first] == np.round(values[..., 2 if first == 0 else 0] / 4095 * 255)).any()


def test_8_bits_are_never_scaled(file: Path) -> None:
    content = encode(picture(), "PNG")
    assert (decoded(file, content) == picture()).all()
    assert (decode(file, pixel_range=(0, 4095)).pixels == picture()).all()


def test_gray_maps_are_scaled_by_the_largest_value_they_name(file: Path) -> None:
    values = (RAMP * 4095).round().astype(">u2")
    for pixel_range in (None, (0, 4095), (0, 65535)):
        file.write_bytes(b"P5 10 6 4095\n" + values.tobytes())
        assert abs(decode(file, pixel_range=pixel_range).pixels[..., 0] - LEVELS).max() <= 1
    file.write_bytes(b"P5 10 6 65535\n" + values.tobytes())
    assert decode(file).is_deep
    assert abs(decode(file, pixel_range=(0, 4095)).pixels[..., 0] - LEVELS).max() <= 1


def test_white_is_zero(file: Path) -> None:
    values = (RAMP * 65535).astype(np.uint16)
    assert abs(decoded(file, tiff(values, (262, 3, 1, 0)))[..., 0] - LEVELS[::-1, ::-1]).max() <= 1


@pytest.mark.parametrize("photometric", [0, 1])
def test_the_order_of_bytes_changes_nothing(file: Path, photometric: int) -> None:
    values = (RAMP * 65535).astype(np.uint16)
    little = decoded(file, tiff(values, (262, 3, 1, photometric)))
    assert (decoded(file, big_endian_tiff(values, photometric)) == little).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [3, 4])
def test_bands_that_are_no_colours_are_refused(file: Path, dtype: type, bands: int) -> None:
    values = np.dstack([RAMP * (at + 1) for at in range(bands)]).astype(dtype)
    assert f"{bands} bands" in refusal(file, tiff(values, (262, 3, 1, 1)))


@pytest.mark.parametrize("values", [DEEP["int16"], DEEP["float64"], (np.dstack([RAMP] * 3) * 65535).astype(np.uint16)])
@pytest.mark.parametrize("missing", [1, 200])
def test_cut_off_deep_images_are_refused(file: Path, values: np.ndarray, missing: int) -> None:
    file.write_bytes(tiff(values)[:-missing])
    with pytest.raises(BadImageError):
        decode(file, pixel_range=(-1000, 400))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "jpeg"])
@pytest.mark.parametrize("missing", [1, 50, 1000])
def test_cut_off_tiffs_are_refused(file: Path, compression: str | None, missing: int) -> None:
    content = encode(picture(), "TIFF", compression=compression)
    assert abs(decoded(file, content).astype(int) - picture()).mean() < 9
    refusal(file, content[:-missing])


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiffs_are_turned_upright(file: Path, orientation: int, dtype: type, channels: int) -> None:
    values = (RAMP * np.iinfo(dtype).max).astype(dtype)
    stored = values if channels == 1 else np.ascontiguousarray(np.dstack([values] * channels))
    upright = np.rot90(LEVELS, 2) if orientation == 3 else np.rot90(LEVELS, -1)
    pixels = decoded(file, tiff(stored, (274, 3, 1, orientation)))
    assert abs(pixels[..., 0].astype(int) - upright).max() <= 1


# --------------------------------------------------------------------------------------------------- metadata


def exif(*entries: tuple[int, int, int, bytes], data: bytes = b"") -> bytes:
    """A little-endian EXIF block with these tags (tag, type, count, four bytes)."""
    body = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return body + b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries) + bytes(4) + data


TURNED = (0x112, 3, 1, struct.pack("<HH", 6, 0))
AFTER_TWO = struct.pack("<I", 8 + 2 + 2 * 12 + 4)
ODD_EXIF = {
    "no TIFF": b"\x00\x08\x00\x02\x01\x12\x00\x03" + bytes(20),
    "announced twice": b"Exif\0\0Exif\0\0" + exif(TURNED),
    "minus one over zero": exif(TURNED, (0x11A, 10, 1, AFTER_TWO), data=struct.pack("<ii", -1, 0)),
    "two numbers for one": exif(TURNED, (0x11A, 5, 2, AFTER_TWO), data=struct.pack("<4I", 72, 1, 72, 1)),
    "cut off": exif(TURNED)[:20],
    "empty": b"",
    "turned by text": exif((0x112, 2, 4, b"six\0")),
    "turned by 99": exif((0x112, 3, 1, struct.pack("<HH", 99, 0))),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("name", ODD_EXIF)
def test_invalid_exif_does_not_stop_an_image(file: Path, kind: str, name: str) -> None:
    body = ODD_EXIF[name]
    if kind == "PNG":
        content = with_chunk(encode(picture(), "PNG"), b"eXIf", body)
    elif kind == "JPEG":
        content = with_segment(encode(picture(), "JPEG", quality=100), 0xE1, b"Exif\0\0" + body)
    else:
        content = encode(picture(), "WEBP", lossless=True, exif=body)
    pixels = decoded(file, content)
    upright = np.rot90(picture(), -1) if pixels.shape[0] == 60 else picture()
    assert abs(pixels.astype(int) - upright).mean() < 9
    if name == "minus one over zero":
        assert pixels.shape[0] == 60, "what is readable of it counts"


def with_chunk(png: bytes, kind: bytes, body: bytes, at: int = 33) -> bytes:
    """The PNG with one more chunk, by default after its header."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:at] + chunk + png[at:]


@cache
def compressed_zeros() -> bytes:
    """More than Pillow would unpack as text."""
    return zlib.compress(bytes(80 * 2**20))


@pytest.mark.parametrize("place", [33, -12])
@pytest.mark.parametrize(
    ("kind", "start"),
    [(b"zTXt", b"log\0\0"), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"), (b"iCCP", b"scanner\0\0"), (b"prVt", b"")],
)
def test_any_amount_of_text_or_profile_does_not_stop_a_png(file: Path, kind: bytes, start: bytes, place: int) -> None:
    content = encode(picture(), "PNG")
    body = start + compressed_zeros()
    assert (decoded(file, with_chunk(content, kind, body, place)) == picture()).all()
    broken = with_chunk(content, kind, b"no zlib", place)
    assert (decoded(file, broken) == picture()).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_other_metadata_does_not_stop_an_image(file: Path, kind: str) -> None:
    options = {"WEBP": {"lossless": True, "xmp": b"<x/>" * 10**6}, "JPEG": {"quality": 100}}.get(kind, {})
    pixels = decoded(file, encode(picture(), kind, icc_profile=b"nonsense" * 200_000, **options))
    assert abs(pixels.astype(int) - picture()).mean() < 9


# ------------------------------------------------------------------------------------------- many at a time


def test_files_are_decoded_in_order_with_the_reason_of_those_that_cannot_be(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(30)]
    for i, path in enumerate(paths):
        path.write_bytes(encode(np.full((3, 4, 3), i, np.uint8), "PNG") if i % 7 else b"")
    for i, image in enumerate(library.decode_all(iter(paths), None)):
        if i % 7:
            assert not isinstance(image, BadImageError) and (image.pixels == i).all()
        else:
            assert str(image) == "empty file"


def test_the_next_files_are_read_meanwhile_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encode(RED, "PNG"))
    taken = 0

    def paths() -> Iterator[Path]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield path

    with contextlib.closing(library.decode_all(paths(), None, ahead=64)) as images:
        next(images)
        at_first = taken
        for _ in range(200):
            next(images)
        assert 64 <= at_first < 1000
        assert taken - 200 < 1000


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".heic", ".heif"}))
def test_what_is_searched_for_can_be_decoded(tmp_path: Path, suffix: str) -> None:
    kind = {".jfif": "JPEG", ".j2k": "JPEG2000", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM"}.get(suffix)
    Image.fromarray(RED).save(tmp_path / f"x{suffix}", kind)
    assert decode(tmp_path / f"x{suffix}").pixels.shape == RED.shape


# --------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("form", ["plain", "progressive", "restarts", "thumbnail", "PNG", "GIF", "WEBP"])
def test_a_file_that_is_cut_off_is_refused_wherever_it_is(file: Path, form: str, share: float) -> None:
    pixels = picture(100, 100)
    options = {"progressive": {"progressive": True}, "restarts": {"restart_marker_blocks": 2}}.get(form, {})
    content = encode(pixels, form if form.isupper() else "JPEG", **options)
    content = with_thumbnail(content) if form == "thumbnail" else content
    assert decoded(file, content).shape == (100, 100, 3)
    reason = refusal(file, content[: int(len(content) * share)])
    if not form.isupper() and share > 0.01:  # not left to OpenCV, because some versions fill the rest with grey
        assert reason == "cut off: the JPEG has no end"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_even_the_last_byte_counts_but_rubbish_behind_it_does_not(file: Path, kind: str) -> None:
    content = encode(picture(), kind)
    for missing in (1, 2):
        assert refusal(file, content[:-missing]) == f"cut off: the {kind} has no end"
    assert (decoded(file, content + b"\0rubbish" * 50) == decoded(file, content)).all()


def test_a_download_padded_with_zeros_is_cut_off(file: Path) -> None:
    content = encode(picture(), "JPEG")
    assert "cut off" in refusal(file, content[: len(content) // 2] + bytes(len(content) // 2))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html><body>404 not found</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
        (bytes(1000), "not an image"),
        (b"\xff\xd8\xff", "cut off"),
        (b"\xff\xd8\xff\xd9", "cut off"),
        (png(0, 0), "not an image"),
        (png(10, 10, b"\0" * 50), "damaged"),
        (encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "float32"),
        (b"\0\0\0\x24ftypheic\0\0\0\0mif1MiHEMiPrmiaf" + bytes(4000), "HEIC image, which cannot be read here: convert"),
        (b"\xff\x0a" + bytes(100), "JPEG XL"),
        (bytes(128) + b"DICM" + bytes(100), "DICOM"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(file: Path, content: bytes, reason: str) -> None:
    assert reason in refusal(file, content)


def test_pixel_bombs_are_refused_at_once(file: Path) -> None:
    jpeg = encode(picture(), "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    start = time.monotonic()
    for bomb in (jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :], png(50_000, 50_000)):
        assert refusal(file, bomb) == "more than 178 million pixels"
    assert time.monotonic() - start < 1


def test_many_scans_without_an_end_are_refused_at_once(file: Path) -> None:
    start = time.monotonic()
    assert "cut off" in refusal(file, b"\xff\xd8\xff" + b"\xff\xda\0\0" * 10**6)
    assert time.monotonic() - start < 1


def test_a_header_of_many_pixels_without_them_is_refused_quickly(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "damaged" in refusal(file, png(9_000, 9_000))


@pytest.mark.parametrize("name", ["folder", "gone.jpg", "x" * 300, "nul\0"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadImageError, match=r".+"):
        decode(tmp_path / name)


PICTURES = [encode(picture(20, 20), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "PPM")]


@given(st.sampled_from(PICTURES), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_any_damage_gives_an_image_or_a_plain_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, damage: list[tuple[int, int]]
) -> None:
    broken = bytearray(content)
    for at, value in damage:
        broken[at % len(broken)] = value
    file = tmp_path_factory.getbasetemp() / "damaged.jpg"
    try:
        pixels = decoded(file, bytes(broken))
    except BadImageError as error:
        assert "0x" not in str(error)  # a reason shared by many files is one problem
        return
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.dtype == np.uint8


# ---------------------------------------------------------------------------------------------------- hashes


def test_but_for_a_jpeg_the_hash_is_of_the_pixels_and_not_of_the_file(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "someone")
    files = [
        encode(picture(), "PNG"),
        encode(picture(), "PNG", pnginfo=text, compress_level=1),
        encode(picture(), "BMP"),
    ]
    hashes = set()
    for i, content in enumerate(files):
        (tmp_path / str(i)).write_bytes(content)
        hashes |= {decode(tmp_path / str(i)).pixel_hash, decode(tmp_path / str(i), 10).pixel_hash}
    assert len(hashes) == 1


@pytest.mark.parametrize("side", [300, 1024])
def test_a_jpegs_metadata_is_not_in_its_hash_but_how_it_is_turned_is(file: Path, side: int) -> None:
    def turn(jpeg: bytes, orientation: int) -> bytes:
        tags = Image.Exif()
        tags[0x110], tags[0x112] = f"camera {orientation}", orientation
        return with_segment(jpeg, 0xE1, b"Exif\0\0" + tags.tobytes().removeprefix(b"Exif\0\0"))

    plain = encode(cv2.resize(picture(), (side, side)), "JPEG", quality=60)
    camera = with_segment(plain, 0xEE, b"Adobe\0\x64\0\0\0\0\0")  # marks the colours as RGB
    upright = [plain, with_thumbnail(plain), turn(plain, 1), turn(plain, 9), with_segment(plain, 0xFE, b"a comment")]
    turned = [turn(plain, orientation) for orientation in range(2, 9)]
    hashes = []
    for content in (*upright, *turned, camera, encode(cv2.resize(picture(seed=1), (side, side)), "JPEG", quality=60)):
        file.write_bytes(content)
        hashes.append(decode(file, 64).pixel_hash)
    assert len(set(hashes[: len(upright)])) == 1
    assert len(set(hashes)) == len(hashes) - len(upright) + 1


def test_the_hash_is_the_same_whatever_size_is_wanted(file: Path) -> None:
    for side in (300, 1023, 1024):
        file.write_bytes(encode(cv2.resize(picture(), (side, side)), "JPEG", quality=60))
        assert len({decode(file, short_side).pixel_hash for short_side in (None, 600, 300, 150, 30)}) == 1


def test_other_pixels_and_other_shapes_of_the_same_bytes_have_other_hashes(file: Path) -> None:
    flat = np.arange(24 * 3, dtype=np.uint8)
    almost = flat.copy()
    almost[-1] += 1
    shapes = [flat.reshape(4, 6, 3), flat.reshape(6, 4, 3), flat.reshape(1, 24, 3), almost.reshape(4, 6, 3)]
    hashes = set()
    for pixels in shapes:
        file.write_bytes(encode(pixels, "PNG"))
        hashes.add(decode(file).pixel_hash)
    assert len(hashes) == len(shapes)
