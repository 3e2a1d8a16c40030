"""The cache holds what was decoded and nothing else."""

import os
import pickle
import shutil
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

import scenes.data.images as library
from drawn import encode, picture
from scenes.competition.table import Table
from scenes.config import DataConfig
from scenes.data.decode import Decoded, decode
from scenes.data.images import Images, open_images, read_images

# ----------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Images of several sizes and kinds, two of them identical."""
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
    """What a build left behind, except its lock."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_the_cache_opens_what_was_decoded_in_order(tmp_path: Path, paths: list[Path]) -> None:
    images = opened(paths, tmp_path / "cache")
    assert len(images) == len(paths) == len(images.pixel_hashes)
    assert images.is_cached
    for row in reversed(range(len(paths))):
        alone = decode(paths[row], 30)
        assert np.array_equal(images[row], alone.pixels)
        assert images.pixel_hashes[row] == alone.pixel_hash.hex()
        assert not images[row].flags.writeable
    assert min(images[0].shape[:2]) == 30
    assert images.pixel_hashes[3] == images.pixel_hashes[-1]
    assert len(set(images.pixel_hashes)) == len(paths) - 1


def test_a_second_opening_decodes_nothing(tmp_path: Path, paths: list[Path]) -> None:
    first = opened(paths, tmp_path / "cache")
    for path in paths:
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = opened(paths, tmp_path / "cache")
    assert all(np.array_equal(first[row], second[row]) for row in range(len(paths)))


def test_more_images_than_are_decoded_at_a_time(tmp_path: Path, paths: list[Path]) -> None:
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
    assert sorted(bad) == [1, 4, 5]
    assert "empty" in bad[1] and "web page" in bad[4] and "cut off" in bad[5]
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
    def interrupt(paths: list[Path], *_: object) -> Iterator[Decoded]:
        yield from map(decode, paths[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "decode_all", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_images(paths, 20, tmp_path / "cache", "training")
    assert caches(tmp_path / "cache") == []


def test_processes_that_build_at_once_build_once(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = library._build

    def slowly(*arguments: Any) -> Any:
        with (tmp_path / "log").open("a") as log:
            log.write("built\n")
        time.sleep(0.3)
        return build(*arguments)

    monkeypatch.setattr(library, "_build", slowly)
    expected = _sums([decode(path, 30).pixels for path in paths])

    def open_and_compare() -> None:
        assert _sums(opened(paths, tmp_path / "cache")) == expected

    processes = [get_context("fork").Process(target=open_and_compare) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    assert (tmp_path / "log").read_text() == "built\n"
    assert len(caches(tmp_path / "cache")) == 1


def _sums(images: Images | list[np.ndarray]) -> list[int]:
    return [int(images[row].sum()) for row in range(len(images))]


def test_images_pickle_small(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(encode(picture(300, 300), "PNG", compress_level=1))
    images = opened([path] * 20, tmp_path / "cache", 200)
    expected = _sums(images)  # the memory map is now open
    pickled = pickle.dumps(images)
    assert len(pickled) < 10_000
    assert _sums(pickle.loads(pickled)) == expected


@pytest.mark.parametrize("room_for", [0, 3])
def test_on_a_full_disk_images_are_decoded_when_needed(
    tmp_path: Path,
    paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    room_for: int,
) -> None:
    free = iter([2**40] * room_for)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 0, next(free, 2**20)))
    images = opened(paths, tmp_path / "cache")
    assert not images.is_cached
    assert "do not fit on the disk" in capsys.readouterr().out
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
    images, problems = read_images(table(paths), 20, DataConfig(cache=tmp_path / "cache"), "training")
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
    images, problems = read_images(table(paths), 20, DataConfig(cache=tmp_path / "cache"), "training")
    assert images is None
    empty, page = problems
    assert {problem.where for problem in problems} == {"train.csv"}
    for fact in ("empty", "line 3", paths[1].name, "line 7", paths[5].name):
        assert fact in empty.what
    for fact in ("web page", "line 5", paths[3].name):
        assert fact in page.what


def test_missing_files_alone_are_no_images_and_no_problem_of_theirs(tmp_path: Path, paths: list[Path]) -> None:
    data = DataConfig(cache=tmp_path / "cache")
    assert read_images(table([tmp_path / "gone", *paths]), 20, data, "training") == (None, [])
    data = DataConfig(cache=tmp_path / "none")
    assert read_images(table([tmp_path / "gone"]), 20, data, "training") == (None, [])
    assert not (tmp_path / "none").exists()


def deep(folder: Path, largest: int, count: int = 5) -> list[Path]:
    """16-bit PNGs whose values end at about `largest`."""
    folder.mkdir()
    ramp = np.linspace(0, largest, 64).reshape(8, 8)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), (ramp - 10 * i).clip(0).astype(np.uint16))
    return sorted(folder.iterdir())


def test_12_of_16_bits_are_never_silently_dark(tmp_path: Path) -> None:
    paths = deep(tmp_path / "images", 4095)
    data = DataConfig(cache=tmp_path / "cache")
    images, (problem,) = read_images(table(paths), 20, data, "training")
    assert images is None
    assert "5 rows" in problem.what and "16" in problem.what
    assert "data.pixel_range: [0, 4095]" in problem.remedy

    images, problems = read_images(table(paths), 20, data.model_copy(update={"pixel_range": (0, 4095)}), "training")
    assert problems == [] and images is not None
    assert images[0].max() == 255 and len(np.unique(images[0])) > 60
    assert images[4].max() == round((4095 - 40) / 4095 * 255), "the same scale for all images"


def test_all_of_16_bits_and_a_dark_one_among_them_need_no_range(tmp_path: Path) -> None:
    paths = deep(tmp_path / "images", 65535)
    cv2.imwrite(str(paths[0]), np.full((8, 8), 100, np.uint16))
    images, problems = read_images(table(paths), 20, DataConfig(cache=tmp_path / "cache"), "training")
    assert problems == [] and images is not None
    assert images[0].max() == 0 and images[1].max() == 255


def test_another_range_is_another_cache(tmp_path: Path) -> None:
    paths = deep(tmp_path / "images", 4095)
    for white in (4095.0, 8190.0):
        images, _ = open_images(paths, 20, tmp_path / "cache", "training", pixel_range=(0.0, white))
        assert images is not None
        assert images[0].max() == round(4095 / white * 255)
