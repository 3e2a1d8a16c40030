"""A competition's files arrive complete, correctly labelled, and without overwriting anything."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import prepare
from scenes import plain_yaml
from scenes.competition import download as download_module
from scenes.competition import folders as library
from scenes.competition.rows import read_train
from scenes.config import Config, DataConfig
from scenes.console import UserError
from small import images, make_zip


def table(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def everything(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# ------------------------------------------------------------------------------------------------- folders


def folders(folder: Path, out: Path) -> None:
    prepare.main(["folders", str(folder), "--out", str(out)])


def test_class_folders_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pets = images(
        tmp_path / "pets", "cat2/10.jpg", "cat2/9.JPG", "cat10/a.webp", "cat10/.b.jpg", "Thumbs.db", "notes.txt"
    )
    folders(pets, tmp_path / "in")
    assert table(tmp_path / "in/train.csv") == [
        ["image_name", "label"],
        ["cat2/9.JPG", "cat2"],
        ["cat2/10.jpg", "cat2"],
        ["cat10/a.webp", "cat10"],
    ]
    assert names(tmp_path / "in") == ["train.csv"]
    printed = capsys.readouterr().out
    assert "no test folder, so no test.csv" in printed
    assert "ignored: 1 files (1 .txt)" in printed
    assert f"--set data.root={tmp_path / 'in'} data.image_dir={pets}" in printed


def test_train_validation_and_flat_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = ["train/a/1.png", "train/b/2.png", "val/b/3.png", "val/a/3.png", "test/x.png", "seg_pred/1.png"]
    images(tmp_path / "d", *split)
    images(tmp_path / "d", "preview.png", "train/overview.png")
    folders(tmp_path / "d", tmp_path / "in")
    assert table(tmp_path / "in/train.csv") == [
        ["image_name", "label", "split"],
        ["train/a/1.png", "a", "train"],
        ["train/b/2.png", "b", "train"],
        ["val/a/3.png", "a", "validation"],
        ["val/b/3.png", "b", "validation"],
    ]
    assert table(tmp_path / "in/test.csv") == [["image_name"], ["test/x.png"]]
    assert names(tmp_path / "in") == ["test.csv", "train.csv"]
    printed = capsys.readouterr().out
    assert "not used: seg_pred" in printed
    assert "ignored: 2 files (2 images outside the class folders)" in printed


def test_labels_of_test_images_are_kept_apart(tmp_path: Path) -> None:
    images(tmp_path / "d", "seg_train/seg_train/a/1.jpg", "seg_train/seg_train/b/2.jpg", "seg_test/seg_test/b/3.jpg")
    folders(tmp_path / "d", tmp_path / "in")
    assert table(tmp_path / "in/train.csv")[1:] == [
        ["seg_train/seg_train/a/1.jpg", "a"],
        ["seg_train/seg_train/b/2.jpg", "b"],
    ]
    assert table(tmp_path / "in/test.csv") == [["image_name"], ["seg_test/seg_test/b/3.jpg"]]
    assert table(tmp_path / "in/test_labels.csv")[1:] == [["seg_test/seg_test/b/3.jpg", "b"]]


@pytest.mark.parametrize(
    ("files", "rows"),
    [
        (["archive/data/a/1.jpg", "archive/data/b/1.jpg"], ["archive/data/a/1.jpg", "archive/data/b/1.jpg"]),
        (["train/a/1.jpg", "train/b/1.jpg"], ["train/a/1.jpg", "train/b/1.jpg"]),
        (["a/images/1.jpg", "b/images/1.jpg"], ["a/images/1.jpg", "b/images/1.jpg"]),
        (["x/train/a/1.jpg", "x/train/b/1.jpg", "x/test/unknown/1.jpg"], ["x/train/a/1.jpg", "x/train/b/1.jpg"]),
    ],
)
def test_folders_around_are_passed_through(tmp_path: Path, files: list[str], rows: list[str]) -> None:
    layout = library.read_folders(images(tmp_path / "d", *files))
    assert [row.image_name for row in layout.train] == rows
    assert [row.label for row in layout.train] == ["a", "b"]
    assert layout.test == [library.Row(name) for name in files if "test" in name]


def test_odd_names_survive_the_csv_and_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = ["a,b", 'say "x"', "straße", "two words", "日本", "it's", "#1: x", "line\nbreak", "NA"]
    root = images(tmp_path / "my: 'data' #1", *(f"{name}/{name}.jpg" for name in classes))
    folders(root, tmp_path / "in put")
    read = pd.read_csv(tmp_path / "in put/train.csv", dtype=str, keep_default_na=False)
    assert sorted(read["label"]) == sorted(classes)
    assert all((root / name).is_file() for name in read["image_name"])

    lines = capsys.readouterr().out.splitlines()
    start = lines.index("  data:")
    expected = {"root": str(tmp_path / "in put"), "image_dir": str(root)}
    assert plain_yaml.parse("\n".join(lines[start : start + 3]), "printed").values == {"data": expected}
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {lines[-1].strip()}"], capture_output=True, text=True).stdout
    pairs = [word.split("=", 1) for word in words.split("\0")[1:-1]]
    printed = {key: plain_yaml.parse(text, key).values for key, text in pairs}
    assert printed == {f"data.{k}": v for k, v in expected.items()}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["readme.txt"], ["no class folders"]),
        (["1.jpg", "2.jpg"], ["no class folders; 2 images lie there"]),
        (["a/1.jpg"], ["only one class folder (a)"]),
        (["a/1.jpg", "b/readme.txt"], ["b: no images"]),
        (["a/1.jpg", "b/1.jpg", "b/inner/2.jpg"], ["b: holds folders ('inner')"]),
        (["test/1.jpg"], ["holds test/ but no train/"]),
        (["train/1.jpg", "test/1.jpg"], ["train: no class folders; 1 images"]),
        (["cat/1.jpg", "cat /1.jpg"], ["differ only in spaces: 'cat '"]),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/c/1.jpg"],
            ["lacks 'b'", "more classes than train: 'c'"],
        ),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], ["val and valid have the same role"]),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/z/1.jpg"], ["neither images alone nor"]),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/2.jpg"], ["neither images alone nor"]),
        (["train/a/1.jpg", "train/b/1.jpg", "test/readme.txt"], ["test: no images"]),
        (["train/a/x", "train/b/x"], ["a: no images", "b: no images", "2 problems"]),
    ],
)
def test_what_is_wrong_is_listed_and_nothing_written(tmp_path: Path, files: list[str], says: list[str]) -> None:
    with pytest.raises(UserError) as error:
        folders(images(tmp_path / "d", *files), tmp_path / "in")
    assert [text for text in says if text not in str(error.value)] == []
    assert not (tmp_path / "in").exists()


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    root = images(tmp_path / "d", "a/1.jpg", "b/1.jpg")
    try:
        Path(os.fsdecode(os.fsencode(root / "b") + b"/\xff.jpg")).touch()
    except OSError:
        pytest.skip("this file system refuses such a name itself")
    with pytest.raises(UserError, match="not UTF-8"):
        folders(root, tmp_path / "in")


@pytest.mark.parametrize("linked", ["b", "b/2.jpg"])
def test_links_to_images_elsewhere_are_followed(tmp_path: Path, linked: str) -> None:
    root = images(tmp_path / "d", "a/1.jpg")
    outside = images(tmp_path / "elsewhere", "2.jpg")
    (root / linked).parent.mkdir(exist_ok=True)
    (root / linked).symlink_to(outside / "2.jpg" if linked.endswith("jpg") else outside)
    assert [row.image_name for row in library.read_folders(root).train] == ["a/1.jpg", "b/2.jpg"]


@pytest.mark.parametrize(
    "classes", [["bus", "car", "train"], ["flask", "pipette", "test"], ["test", "train", "valid", "x"]]
)
def test_a_class_may_be_called_as_a_split_is(tmp_path: Path, classes: list[str]) -> None:
    layout = library.read_folders(images(tmp_path / "d", *(f"{name}/1.jpg" for name in classes)))
    assert [row.label for row in layout.train] == classes
    assert not layout.test
    split = images(tmp_path / "split", *(f"{part}/{name}/1.jpg" for part in ("train", "test") for name in classes))
    layout = library.read_folders(split)
    assert [row.label for row in layout.train] == [row.label for row in layout.test] == classes


def test_whatever_the_decoder_reads_is_an_image(tmp_path: Path) -> None:
    suffixes = [".ppm", ".PGM", ".jfif", ".avif", ".jp2", ".tif"]
    layout = library.read_folders(images(tmp_path / "d", "a/1.jpg", *(f"b/1{suffix}" for suffix in suffixes)))
    assert len(layout.train) == 7
    assert not layout.ignored


def test_train_reads_what_folders_writes(tmp_path: Path) -> None:
    classes = ["none", "0.5", "null", "NA", "cat ", "1", "train"]
    root = images(tmp_path / "d", *(f"{name}/ {i}.jpg" for name in classes for i in range(2)))
    folders(root, tmp_path / "in")
    _, labels, wrong = read_train(Config(name="x", data=DataConfig(root=tmp_path / "in", image_dir=root)))
    assert not wrong
    assert labels.task.columns == sorted(classes)


@pytest.mark.parametrize("name", ["train.csv", "test.csv", "sample_submission.csv"])
def test_csvs_are_never_overwritten(tmp_path: Path, name: str) -> None:
    images(tmp_path / "d", "train/a/1.jpg", "train/b/1.jpg", "test/1.jpg")
    images(tmp_path / "in", name)
    with pytest.raises(UserError, match=rf"{name}: already exists.*--out"):
        folders(tmp_path / "d", tmp_path / "in")
    assert everything(tmp_path / "in") == {name: b""}


def test_the_command_itself(tmp_path: Path) -> None:
    arguments = [sys.executable, prepare.__file__, "folders", "nowhere", "--out", "in"]
    failed = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ") and "no such folder" in failed.stderr
    assert "Traceback" not in failed.stderr


# ------------------------------------------------------------------------------------------------ download


@pytest.fixture
def kaggle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in for the kaggle command, the only folder on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


def stand_in(folder: Path, script: str) -> None:
    command = folder / "kaggle"
    command.write_text(f'#!/bin/bash\nPATH=/usr/bin:/bin\necho "$@" >> {folder}/arguments\n{script}\n')
    command.chmod(0o755)


def delivers(folder: Path, entries: dict[str, bytes], link: str = "") -> None:
    """Makes the stand-in put a zip archive where -p says."""
    make_zip(folder / "scenes.zip", entries, link)
    stand_in(folder, f'echo "Downloading scenes.zip"; cp {folder}/scenes.zip "$6/"')


def download(out: Path, slug: str = "scenes") -> None:
    prepare.main(["download", "--competition", slug, "--out", str(out)])


def test_download_unpacks_beside_what_is_there(
    tmp_path: Path, kaggle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delivers(kaggle, {"train.csv": b"1", "Images/1.jpg": b"2", "Images/new/2.jpg": b"3", "more.zip": b""})
    out = images(tmp_path / "in", "README.md", "Images/0.jpg")
    download(out)
    assert everything(out) == {
        **{"README.md": b"", "Images/0.jpg": b"", "more.zip": b""},
        **{"train.csv": b"1", "Images/1.jpg": b"2", "Images/new/2.jpg": b"3"},
    }
    assert names(out) == sorted([*everything(out), "Images", "Images/new"]), "nothing hidden is left"
    assert (kaggle / "arguments").read_text() == f"competitions download -c scenes -p {out}/.download-scenes\n"
    printed = capsys.readouterr().out
    assert "Downloading scenes.zip" in printed
    assert "more.zip: not a readable archive" in printed


def test_download_overwrites_nothing(tmp_path: Path, kaggle: Path) -> None:
    delivers(kaggle, {"a.csv": b"new", "train.csv": b"new", "Images/1.jpg": b"new", "link/2.jpg": b"new"})
    out = images(tmp_path / "in", "train.csv", "Images/1.jpg")
    elsewhere = images(tmp_path / "elsewhere", "0.jpg")
    (out / "link").symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"3 of .* already exist in .*in and.*Images/1\.jpg.*link.*train\.csv"):
        download(out)
    kept = everything(out)
    assert kept.pop(".download-scenes/scenes.zip")
    assert kept == {"train.csv": b"", "Images/1.jpg": b""}
    assert names(elsewhere) == ["0.jpg"]

    for path in (out / "train.csv", out / "Images/1.jpg", out / "link"):
        path.unlink()
    download(out)
    assert set(everything(out)) == {"a.csv", "train.csv", "Images/1.jpg", "link/2.jpg"}


@pytest.mark.parametrize(("name", "link"), [("../evil", ""), ("/evil", ""), ("good.txt", "passwd")])
def test_an_unsafe_archive_leaves_nothing(tmp_path: Path, kaggle: Path, name: str, link: str) -> None:
    delivers(kaggle, {"train.csv": b"1", name: b"2"}, link)
    with pytest.raises(UserError, match="not unpacked"):
        download(tmp_path / "in")
    assert names(tmp_path / "in") == []
    assert not (tmp_path / "evil").exists()


NO_CREDENTIALS = """Authentication required to call the Kaggle API.

First, you will need a Kaggle account. You can sign up at
  https://www.kaggle.com/account/login"""
NO_RULES = """403 Client Error: Forbidden for url: https://api.kaggle.com/v1/x

You don't have access to this resource.
If this is a competition, you may need to accept its rules first at"""
NO_NETWORK = """  File "kaggle_api_extended.py", line 1, in authenticate
requests.exceptions.ConnectionError: HTTPSConnectionPool(host='api.kaggle.com', port=443): Failed to resolve"""


@pytest.mark.parametrize(
    ("prints", "says"),
    [
        (NO_CREDENTIALS, ["Settings → API", "KAGGLE_API_TOKEN", "~/.kaggle/", "KAGGLE_USERNAME and KAGGLE_KEY"]),
        ("OSError: Could not find kaggle.json.", ["Settings → API"]),
        ("401 Client Error: Unauthorized for url: https://x", ["Settings → API"]),
        (NO_RULES, ["https://www.kaggle.com/competitions/scenes/rules", "accept", "403 Client Error"]),
        (NO_NETWORK, ["cannot be reached"]),
        ("404 Client Error: Not Found for url: https://x", ["has no competition scenes"]),
        ("first\nValueError: the moon", ["exit code 3", "ValueError: the moon"]),
    ],
)
@pytest.mark.parametrize("stream", [1, 2])
def test_failures_of_kaggle_come_with_a_remedy(
    tmp_path: Path, kaggle: Path, prints: str, says: list[str], stream: int
) -> None:
    stand_in(kaggle, f"cat >&{stream} <<'END'\n{prints}\nEND\nexit 3")
    with pytest.raises(UserError) as error:
        download(tmp_path / "in")
    assert [text for text in says if text not in str(error.value)] == []
    assert names(tmp_path / "in") == []


def test_kaggle_that_delivers_nothing(tmp_path: Path, kaggle: Path) -> None:
    stand_in(kaggle, 'touch "$6/scenes.7z"')
    with pytest.raises(UserError, match="one zip archive"):
        download(tmp_path / "in")


def test_kaggle_not_installed(tmp_path: Path, kaggle: Path) -> None:
    with pytest.raises(UserError, match=r"pip install kaggle==2\.2\.5"):
        download(tmp_path / "in")
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize("slug", ["", "Scenes", "a b", "https://www.kaggle.com/competitions/x", "../x", "a\n", "a;ls"])
def test_a_wrong_slug_never_reaches_kaggle(tmp_path: Path, kaggle: Path, slug: str) -> None:
    delivers(kaggle, {})
    with pytest.raises(UserError, match="last part of the competition's address"):
        download(tmp_path / "in", slug)
    assert not (kaggle / "arguments").exists()


@pytest.mark.parametrize("moment", ["unpacking", "moving"])
def test_an_interruption_leaves_the_download_alone(
    tmp_path: Path, kaggle: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    delivers(kaggle, {"a.csv": b"1", "b.csv": b"2", "c.csv": b"3"})
    rename = Path.rename

    def half_unzip(archive: Path, folder: Path) -> list[Path]:
        images(folder, "a.csv")
        raise KeyboardInterrupt

    def stopped_rename(self: Path, target: Path) -> Path:
        if target == tmp_path / "in/b.csv":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        if moment == "unpacking":
            patch.setattr(download_module, "unzip", half_unzip)
        else:
            patch.setattr(Path, "rename", stopped_rename)
        with pytest.raises(KeyboardInterrupt):
            download(tmp_path / "in")
    assert names(tmp_path / "in") == [".download-scenes", ".download-scenes/scenes.zip"]
    download(tmp_path / "in")
    assert names(tmp_path / "in") == ["a.csv", "b.csv", "c.csv"]


# -------------------------------------------------------------------------------------------------- sample


def test_sample_draws_and_is_not_drawn_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sample", "--out", str(tmp_path / "s"), "--train-rows", "12", "--test-rows", "6"]
    prepare.main(arguments)
    assert (len(table(tmp_path / "s/train.csv")), len(table(tmp_path / "s/test.csv"))) == (13, 7)
    assert f"--set data.root={tmp_path / 's'}" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"train\.csv: already exists"):
        prepare.main(arguments)
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(UserError, match="must be at least 1"):
        prepare.main([*arguments, "--test-rows", "0"])
