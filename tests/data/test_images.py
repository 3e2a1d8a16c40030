"""An image is decoded rightly or refused with a reason; the cache holds what was decoded and nothing else."""

import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import scenes.data.images as library
from scenes.competition.rows import Table
from scenes.data.images import BadImageError, Images, decode, open_images, read_images

SOURCE = Path(library.__file__).parents[2]


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """A smooth gradient with some noise, so that JPEGs stay close and still have a size."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x / width, y / height, (x + y) / (height + width)], 2) * 200
    return (smooth + np.random.default_rng(seed).integers(0, 40, (height, width, 3))).astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, body: bytes = b"") -> bytes:
    """A well-formed PNG of whatever its header says."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    """The JPEG with a segment of metadata more."""
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


def test_cmyk_jpegs(file: Path) -> None:
    assert abs(decoded(file, encode(Image.fromarray(RED).convert("CMYK"), "JPEG")).astype(int) - RED).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_image_upright(file: Path, kind: str, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16, 0] = 255  # red above left
    back = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2)}
    back |= {6: np.rot90, 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1)}
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = np.ascontiguousarray(back[orientation](upright))
    pixels = decoded(file, encode(stored, kind, exif=exif, **({} if kind == "PNG" else {"quality": 100})))
    assert pixels.shape == upright.shape
    assert abs(pixels.astype(int) - upright).mean() < 6


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_picture(file: Path, kind: str) -> None:
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
def test_a_large_jpeg_shrinks_in_the_decoder_to_nearly_the_same_picture(
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
    if not form.isupper() and share > 0.01:  # not left to OpenCV, of which some versions fill up with gray
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
        (b"<!DOCTYPE html><html><body>404 not found</body></html>", "not an image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "not an image"),
        (bytes(1000), "not an image"),
        (b"\xff\xd8\xff", "cut off"),
        (b"\xff\xd8\xff\xd9", "cut off"),
        (png(0, 0), "not an image"),
        (png(10, 10, b"\0" * 50), "damaged"),
        (encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "not 8 or 16 bits"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_reason(file: Path, content: bytes, reason: str) -> None:
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
@settings(max_examples=150, derandomize=True, deadline=None)
def test_any_damage_ends_in_a_picture_or_a_plain_refusal(
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
    camera = with_segment(plain, 0xEE, b"Adobe\0\x64\0\0\0\0\0")  # says that the colours are RGB
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


# ----------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Images of several sizes and kinds, two of them equal."""
    folder = tmp_path / "images"
    folder.mkdir()
    sizes = [(40, 60), (60, 40), (30, 30), (1, 50), (33, 47), (100, 90)]
    files = [folder / f"{i}.jpg" for i in range(len(sizes))]
    for i, (file, size) in enumerate(zip(files, sizes, strict=True)):
        file.write_bytes(encode(picture(*size, seed=i), "PNG" if i % 2 else "JPEG"))
    return [*files[::-1], shutil.copy(files[2], folder / "copy.jpg")]


def opened(paths: list[Path], cache: Path, size: int = 20) -> Images:
    images, bad = open_images(paths, size, cache, "training")
    assert bad == {}
    assert images is not None
    return images


def caches(cache: Path) -> list[str]:
    """What a build left behind, but for its lock."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(library, "decode", fail)


def test_the_cache_opens_what_was_decoded_in_order(tmp_path: Path, paths: list[Path]) -> None:
    images = opened(paths, tmp_path / "cache")
    assert len(images) == len(paths) == len(images.pixel_hashes)
    assert images.is_cached
    for row in reversed(range(len(paths))):
        pixels, pixel_hash = decode(paths[row], 30)
        assert np.array_equal(images[row], pixels)
        assert images.pixel_hashes[row] == pixel_hash.hex()
        assert not images[row].flags.writeable
    assert min(images[0].shape[:2]) == 30
    assert images.pixel_hashes[3] == images.pixel_hashes[-1]
    assert len(set(images.pixel_hashes)) == len(paths) - 1


def test_a_second_opening_decodes_nothing(tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(paths, tmp_path / "cache")
    forbid_decoding(monkeypatch)
    second = opened(paths, tmp_path / "cache")
    assert all(np.array_equal(first[row], second[row]) for row in range(len(paths)))


def test_more_images_than_are_decoded_at_a_time(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "CHUNK", 3)
    images = opened(paths * 3, tmp_path / "cache")
    assert all(np.array_equal(images[row], decode((paths * 3)[row], 30).pixels) for row in range(len(images)))


def test_a_changed_file_another_order_and_another_size_are_other_caches(tmp_path: Path, paths: list[Path]) -> None:
    cache = tmp_path / "cache"
    opened(paths, cache)
    assert np.array_equal(opened(paths[::-1], cache)[0], decode(paths[-1], 30).pixels)
    assert min(opened(paths, cache, 24)[0].shape[:2]) == 36
    paths[0].write_bytes(encode(picture(25, 25, seed=99), "PNG"))
    assert np.array_equal(opened(paths, cache)[0], picture(25, 25, seed=99))
    assert len(caches(cache)) == 4


def test_a_file_rewritten_with_as_many_bytes_is_decoded_again(tmp_path: Path) -> None:
    file = tmp_path / "x.bmp"
    for shade in (10, 20):
        file.write_bytes(encode(np.full((9, 9, 3), shade, np.uint8), "BMP"))
        os.utime(file, (shade, shade))
        assert (opened([file], tmp_path / "cache")[0] == shade).all()


def test_equal_names_in_other_folders_do_not_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [encode(np.full((9, 9, 3), shade, np.uint8), "PNG", compress_level=0) for shade in (10, 20)]
    for folder, content in zip("ab", contents, strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(content)
        (tmp_path / folder / "x.png").touch()
    shutil.copystat(tmp_path / "a/x.png", tmp_path / "b/x.png")
    for folder, shade in zip("ab", (10, 20), strict=True):
        monkeypatch.chdir(tmp_path / folder)
        assert (opened([Path("x.png")], tmp_path / "cache")[0] == shade).all()


def test_bad_images_are_listed_by_row_and_leave_no_cache(tmp_path: Path, paths: list[Path]) -> None:
    paths[1].write_bytes(b"")
    paths[4].write_bytes(b"<html>")
    paths[5].write_bytes(paths[5].read_bytes()[:-9])
    images, bad = open_images(paths, 20, tmp_path / "cache", "training")
    assert images is None
    assert bad == {1: "empty file", 4: "not an image", 5: "cut off: the JPEG has no end"}
    assert caches(tmp_path / "cache") == []


def test_what_a_killed_build_left_is_removed(tmp_path: Path, paths: list[Path]) -> None:
    cache = tmp_path / "cache"
    opened(paths, cache)
    (name,) = caches(cache)
    (cache / f"{name}.part123").mkdir()
    (cache / f"{name}.part123/images.bin").write_bytes(b"half")
    (cache / name / "index.npz").unlink()
    images = opened(paths, cache)
    assert caches(cache) == [name]
    assert np.array_equal(images[0], decode(paths[0], 30).pixels)


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, short_side: int | None = None) -> object:
        if path == paths[3]:
            raise KeyboardInterrupt
        return decode(path, short_side)

    monkeypatch.setattr(library, "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_images(paths, 20, tmp_path / "cache", "training")
    assert caches(tmp_path / "cache") == []


BUILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {source!r})
import scenes.data.images as library
real = library._build
def build(*arguments):
    with Path({log!r}).open("a") as log: log.write("built\\n")
    time.sleep(0.3)
    return real(*arguments)
library._build = build
images, bad = library.open_images([Path(p) for p in sys.argv[1:]], 20, Path({cache!r}), "training")
print(sum(int(images[row].sum()) for row in range(len(images))), bad)
"""


def test_processes_that_build_at_once_build_once(tmp_path: Path, paths: list[Path]) -> None:
    code = BUILD.format(source=str(SOURCE), log=str(tmp_path / "log"), cache=str(tmp_path / "cache"))
    command = [sys.executable, "-c", code, *map(str, paths)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    printed = {process.communicate()[0] for process in processes}
    expected = sum(int(decode(path, 30).pixels.sum()) for path in paths)
    assert printed == {f"{expected} {{}}\n"}
    assert (tmp_path / "log").read_text() == "built\n"
    assert len(caches(tmp_path / "cache")) == 1


def _sums(images: Images) -> list[int]:
    return [int(images[row].sum()) for row in range(len(images))]


def test_images_pickle_small_and_open_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(encode(picture(600, 600), "PNG", compress_level=1))
    images = opened([path] * 20, tmp_path / "cache", 400)
    expected = _sums(images)  # the map is open now
    assert len(pickle.dumps(images)) < 10_000
    program = (
        f"import pickle, sys; sys.path.insert(0, {str(SOURCE)!r}); images = pickle.load(sys.stdin.buffer); "
        "print(sum(int(images[row].sum()) for row in range(20)))"
    )
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, input=pickle.dumps(images), capture_output=True, check=True)
    assert int(printed.stdout) == sum(expected)
    assert _sums(pickle.loads(pickle.dumps(images))) == expected


@pytest.mark.parametrize("room_for", [0, 3])
def test_on_a_full_disk_images_are_decoded_when_needed(
    tmp_path: Path,
    paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    room_for: int,
) -> None:
    monkeypatch.setattr(library, "CHUNK", 1)
    free = iter([2**40] * room_for)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, next(free, 2**20)))
    images = opened(paths, tmp_path / "cache")
    assert not images.is_cached
    assert "did not fit on the disk" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "cache").rglob("images.bin")] == []
    again = pickle.loads(pickle.dumps(images))
    monkeypatch.undo()
    cached = opened(paths, tmp_path / "other")
    assert cached.is_cached
    assert (cached.pixel_hashes == images.pixel_hashes).all()
    for row in range(len(paths)):
        assert np.array_equal(images[row], cached[row])
        assert np.array_equal(again[row], cached[row])
    opened(paths, tmp_path / "cache")
    assert f"delete {tmp_path / 'cache'}" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- tables


def table(paths: list[Path]) -> Table:
    names = [path.name for path in paths]
    return Table(Path("train.csv"), names, paths, pd.DataFrame({"n": names}, index=range(2, len(paths) + 2)))


def test_a_table_of_good_images(tmp_path: Path, paths: list[Path]) -> None:
    images, problems = read_images(table(paths), 20, tmp_path / "cache", "training")
    assert problems == []
    assert images is not None
    assert np.array_equal(images[2], decode(paths[2], 30).pixels)


def test_each_kind_of_damage_is_one_problem_and_missing_files_are_left_to_the_csv(
    tmp_path: Path, paths: list[Path]
) -> None:
    paths[0] = tmp_path / "gone.jpg"
    paths[2] = tmp_path / ("long" * 100)
    for path, content in ((paths[1], b""), (paths[3], b"<html>"), (paths[5], b"")):
        path.write_bytes(content)
    images, problems = read_images(table(paths), 20, tmp_path / "cache", "training")
    assert images is None
    assert [(problem.where, problem.what) for problem in problems] == [
        (
            "train.csv",
            f"2 rows with an unreadable image (empty file): line 3 ({paths[1].name!r}), line 7 ({paths[5].name!r})",
        ),
        ("train.csv", f"1 row with an unreadable image (not an image): line 5 ({paths[3].name!r})"),
    ]


def test_missing_files_alone_are_no_images_and_no_problem_of_theirs(tmp_path: Path, paths: list[Path]) -> None:
    assert read_images(table([tmp_path / "gone", *paths]), 20, tmp_path / "cache", "training") == (None, [])
    assert read_images(table([tmp_path / "gone"]), 20, tmp_path / "none", "training") == (None, [])
    assert not (tmp_path / "none").exists()
