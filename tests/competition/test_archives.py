"""A competition's archives are unpacked next to themselves, safely, and without overwriting anything."""

import io
import tarfile
from pathlib import Path

import pytest

from scenes.competition import archives
from scenes.console import UserError
from scenes.files import unzip
from small import make_zip


def zipped(path: Path, *names: str) -> Path:
    return make_zip(path, {name: name.encode() for name in names})


def tarred(path: Path, *names: str, link: str = "", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
        if link:
            entry = tarfile.TarInfo("link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_flat_nested_and_single_files(tmp_path: Path) -> None:
    zipped(tmp_path / "train.zip", "1.jpg", "2.jpg")
    zipped(tmp_path / "test.zip", "test/1.jpg", "__MACOSX/x")
    zipped(tmp_path / "train.csv.zip", "train.csv")
    tarred(tmp_path / "a.tar.gz", "x/1.jpg", mode="w:gz")
    tarred(tmp_path / "b.tar.gz", "x/1.jpg")  # named .gz, but not compressed
    for archive in archives.packed(tmp_path):
        archives.unpack(archive)
    unpacked = [name for name in names(tmp_path) if not name.endswith(("zip", "gz"))]
    assert unpacked == ["a/x/1.jpg", "b/x/1.jpg", "test/1.jpg", "train.csv", "train/1.jpg", "train/2.jpg"]
    assert archives.packed(tmp_path) == []


def test_what_is_there_is_not_unpacked_again(tmp_path: Path) -> None:
    zipped(tmp_path / "train.zip", "1.jpg")
    (tmp_path / "train").mkdir()
    assert archives.packed(tmp_path) == []


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
@pytest.mark.parametrize("make", [zipped, tarred])
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, name: str, make: object) -> None:
    archive = (zipped if make is zipped else tarred)(tmp_path / ("a.zip" if make is zipped else "a.tar"), "1.jpg", name)
    with pytest.raises(UserError, match="evil"):
        archives.unpack(archive)
    assert names(tmp_path) == [archive.name]


def test_links_and_damage_are_refused(tmp_path: Path) -> None:
    linked = tarred(tmp_path / "a.tar", "1.jpg", link="/etc")
    with pytest.raises(UserError, match="'link'"):
        archives.unpack(linked)
    for name in ("b.zip", "c.tar.gz"):
        (tmp_path / name).write_bytes(b"PK\3\4 no archive")
        with pytest.raises(UserError, match=name):
            archives.unpack(tmp_path / name)
    assert names(tmp_path) == ["a.tar", "b.zip", "c.tar.gz"]


def test_what_does_not_fit_on_the_disk_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "FREE_DISK_RESERVE", 2**60)
    with pytest.raises(UserError, match="GB"):
        archives.unpack(zipped(tmp_path / "a.zip", "1.jpg"))
    assert names(tmp_path) == ["a.zip"]


def test_what_was_unpacked_by_hand_is_not_unpacked_again(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "my-comp.zip", {"train.csv": b"1", "train/a.jpg": b"2", "__MACOSX/x": b""})
    assert archives.packed(tmp_path) == [archive]
    (tmp_path / "train").mkdir()
    (tmp_path / "train.csv").touch()
    assert archives.packed(tmp_path) == [archive]  # an image is missing
    (tmp_path / "train/a.jpg").touch()
    assert archives.packed(tmp_path) == []


def test_backslashes_are_folders(tmp_path: Path) -> None:
    assert unzip(make_zip(tmp_path / "a.zip", {"a\\b.txt": b"1"}), tmp_path) == [tmp_path / "a/b.txt"]
