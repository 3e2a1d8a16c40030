"""An id finds its image by path, or else by name or stem below the folder, if exactly one file matches."""

import os
import unicodedata
from pathlib import Path

import pytest

from scenes.competition.find import Finder, image_files
from small import images


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("a.jpg", ["a.jpg", "b/a.jpg"], ["a.jpg"]),
        ("a", ["x/a.png", "x/ab.png"], ["x/a.png"]),
        ("1.2.826.43", ["1.2.826.43.jpg", "1.2.826.jpg"], ["1.2.826.43.jpg"]),
        ("top/sub/a.jpg", ["sub/a.jpg", "other/a.jpg"], ["sub/a.jpg"]),
        ("sub/a.jpg", ["images/sub/a.jpg", "images/a.jpg"], ["images/sub/a.jpg"]),
        ("cat\\a.jpg", ["cat/a.jpg"], ["cat/a.jpg"]),
        ("a.jpg", ["A.JPG"], ["A.JPG"]),
        ("a.jpg", ["a.jpeg"], ["a.jpeg"]),
        ("a.tif", ["a.jpg", "b.jpg"], ["a.jpg"]),
        ("cat/a.jpg", ["dog/a.jpg"], []),
        ("a.jpg", ["a.png", "b.jpg"], []),  # no other image is used instead
        ("a", ["x/a.png", "y/a.png"], ["x/a.png", "y/a.png"]),
        ("a", ["a.png", "a.jpg"], ["a.jpg", "a.png"]),
        ("b", ["a.png", ".b.png", "__MACOSX/b.png", "b.txt"], []),
    ],
)
def test_names_and_files(tmp_path: Path, name: str, files: list[str], expected: list[str]) -> None:
    found = Finder(images(tmp_path, *files)).find(name)
    assert found.files == expected
    if len(expected) == 1:
        assert found.path == tmp_path / expected[0]


def test_a_suffix_chooses_among_several_files(tmp_path: Path) -> None:
    images(tmp_path, "a_red.png", "a_green.png", "a.jpg", "a.png")
    assert Finder(tmp_path, ".png").find("a").path == tmp_path / "a.png"
    assert Finder(tmp_path, ".png").find("a.png").path == tmp_path / "a.png"
    assert Finder(tmp_path, "_green").find("a").path == tmp_path / "a_green.png"


def test_unicode_forms_are_one_name(tmp_path: Path) -> None:
    images(tmp_path, unicodedata.normalize("NFD", "éléphant.jpg"))
    assert len(Finder(tmp_path).find(unicodedata.normalize("NFC", "éléphant.jpg")).files) == 1


def test_the_nearest_file_is_named(tmp_path: Path) -> None:
    images(tmp_path, "x/IMG_0012.png", "x/other.png")
    assert Finder(tmp_path).nearest("IMG-0012") == "x/IMG_0012.png"
    assert Finder(tmp_path).nearest("zzz") is None


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    images(tmp_path, "big/a.png", "images/b.png")
    (tmp_path / "images/more").symlink_to(tmp_path / "big", target_is_directory=True)
    (tmp_path / "images/back").symlink_to(tmp_path / "images", target_is_directory=True)
    assert list(image_files(tmp_path / "images")) == ["b.png", "more/a.png"]


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "x/../../a.png", "a\0.png", "link/../../a.png"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    assert Finder(tmp_path / "images").leaves(name)


def test_a_folder_is_walked_once_and_in_order_whatever_is_in_it(tmp_path: Path) -> None:
    images(tmp_path, "b/2.jpg", "b/10.JPG", "a/deep/1.png", "c.jpeg", "a.txt", ".hidden.jpg")
    (tmp_path / "b/circle.jpg").symlink_to(tmp_path)
    (tmp_path / "b/gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "b/loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "b/pipe.jpg")
    found = list(image_files(tmp_path))
    assert found == ["c.jpeg", "a/deep/1.png", "b/10.JPG", "b/2.jpg", "b/gone.jpg", "b/loop.jpg"]
    assert not list(image_files(tmp_path / "gone"))
