"""Files are whole or absent."""

import errno
import tempfile
from pathlib import Path

import pytest

from scenes.console import UserError
from scenes.files import keep_old, unzip, write_atomic, write_text
from small import make_zip


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_write_text_writes_utf8_without_changing_line_ends_and_makes_the_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "grün\r\n\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"gr\xc3\xbcn\r\n\n"
    assert files_in(tmp_path) == ["new/a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_write_atomic_keeps_the_old_content_when_the_writer_fails(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(error):
        write_atomic(path, write)
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["a.txt"]


def test_write_atomic_replaces_a_file_that_is_open(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new content")
        assert reader.read() == "old"
    assert path.read_text() == "new content"


def test_keep_old_takes_the_first_free_number(tmp_path: Path) -> None:
    path = tmp_path / "a.b.csv"
    assert keep_old(path) is None
    for number in (1, 2):
        path.write_text(str(number))
        assert keep_old(path) == tmp_path / f"a.b.{number}.csv"
    (tmp_path / "a.b.1.csv").unlink()
    path.write_text("3")
    assert keep_old(path) == tmp_path / "a.b.1.csv"
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.b.1.csv": "3", "a.b.2.csv": "2"}


def test_unzip_unpacks_folders_and_returns_the_files(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"train.csv": b"1", "images/": b"", "images/ä b.jpg": b"2"})
    written = unzip(archive, tmp_path / "out")
    assert sorted(written) == [tmp_path / "out/images/ä b.jpg", tmp_path / "out/train.csv"]
    assert (tmp_path / "out/images/ä b.jpg").read_bytes() == b"2"


@pytest.mark.parametrize("name", [".", "../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "C:evil"])
def test_unzip_refuses_paths_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "a.zip", {"good.txt": b"1", name: b"2"})
    with pytest.raises(UserError, match="would leave the folder"):
        unzip(archive, tmp_path / "out")
    assert files_in(tmp_path) == ["a.zip"]


def test_unzip_refuses_links(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"good.txt": b"1"}, link="passwd")
    with pytest.raises(UserError, match="passwd"):
        unzip(archive, tmp_path / "out")
    assert files_in(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("place", ["content", "end", "no zip"])
def test_unzip_refuses_a_damaged_archive(tmp_path: Path, place: str) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.txt": b"1", "b.txt": bytes(range(256)) * 20})
    content = bytearray(archive.read_bytes())
    if place == "content":
        start = content.index(b"b.txt") + 5
        content[start : start + 30] = b"\xff" * 30
    damaged: dict[str, bytes] = {"content": bytes(content), "end": bytes(content[:-40]), "no zip": b"<html>"}
    archive.write_bytes(damaged[place])
    with pytest.raises(UserError, match="download"):
        unzip(archive, tmp_path / "out")
    assert files_in(tmp_path) == ["a.zip"]


def test_unzip_says_when_a_password_is_needed(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a.txt": b"1"})
    content = bytearray(archive.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match="password"):
        unzip(archive, tmp_path / "out")


@pytest.mark.parametrize("failure", [RuntimeError("[enforce fail at inline_container.cc]"), OSError("7 requested")])
@pytest.mark.parametrize("is_full", [True, False])
def test_a_full_disk_is_named_whatever_the_library_made_of_it(
    failure: Exception, is_full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_: Path) -> None:
        raise failure

    def refuse(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if is_full:
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError if is_full else type(failure)) as caught:
        write_atomic(tmp_path / "x", fill)
    if is_full:
        assert isinstance(caught.value, OSError)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))
    else:
        assert caught.value is failure
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for folder in ("a", "a/b/c"):
        with pytest.raises(UserError, match=rf"{tmp_path / 'a'}: is a file"):
            write_text(tmp_path / folder / "x", "")


def test_a_foreign_file_of_that_kind_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".a.csv.backup.tmp").touch()
    write_text(tmp_path / "a.csv", "x")
    assert (tmp_path / ".a.csv.backup.tmp").exists()
