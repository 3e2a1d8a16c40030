"""predict.py on any files: infer.py's probabilities, only results on stdout, bad files named, nothing kept."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import infer
import predict
from scenes import script
from scenes.console import UserError

IMAGES = Path("input/SceneImages")


def results(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    predict.main(list(arguments))
    return capsys.readouterr().out


def test_the_probabilities_are_those_of_infer(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = pd.read_csv("input/test.csv", dtype=str)["image_name"]
    # Sizes that the cache shrinks (more than 1.5 × 32 pixels) and that must be enlarged.
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    cv2.imwrite(str(IMAGES / names[0]), cv2.resize(pixels, (300, 200), interpolation=cv2.INTER_CUBIC))
    cv2.imwrite(str(IMAGES / names[1]), pixels[:20, :25])
    infer.main([])
    expected = pd.read_csv("submissions/tiny_probabilities.csv", dtype={"image_name": str})
    printed = results(capsys, *(str(IMAGES / name) for name in names), "--format", "csv", "--top", "99")
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert [row["image"] for row in rows] == [str(IMAGES / name) for name in expected["image_name"]]
    for row, (_, wanted) in zip(rows, expected.iterrows(), strict=True):
        ends = ["", *(f"_{place}" for place in range(2, 7))]
        found = {row[f"label{end}"]: float(row[f"confidence{end}"]) for end in ends}
        assert found == pytest.approx({label: wanted[label] for label in "012345"}, abs=1e-5)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_folder_is_searched_and_nothing_is_left_behind(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path("mes photos/été 日本")
    place.mkdir(parents=True)
    images = sorted(IMAGES.iterdir())
    shutil.copy(images[0], place / "a b.JPG")
    shutil.copy(images[1], "mes photos/z.jpeg")
    Path("mes photos/notes.txt").write_text("no image, and no reason to stop")
    Path("mes photos/._z.jpeg").write_bytes(b"what another system leaves beside a file")
    os.mkfifo("mes photos/pipe.jpg")  # reading from it would never end
    before = sorted(Path().rglob("*"))
    found = json.loads(results(capsys, "mes photos", "--format", "json", "--top", "2"))
    assert [entry["image"] for entry in found] == ["mes photos/z.jpeg", "mes photos/été 日本/a b.JPG"]
    assert all(entry["top"][0]["label"] == entry["label"] and len(entry["top"]) == 2 for entry in found)
    table = results(capsys, "mes photos", "--top", "1").splitlines()
    assert len(table) == 3
    assert f"{found[1]['class']} {found[1]['confidence']:.4f}" in table[2]
    assert sorted(Path().rglob("*")) == before


def test_unreadable_files_are_named_at_the_end_and_the_others_printed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted(IMAGES.iterdir())[:2]
    Path("broken.jpg").write_bytes(good[0].read_bytes()[:300])
    arguments = [str(good[0]), "broken.jpg", str(good[1]), "--format", "json"]
    with pytest.raises(SystemExit) as stopped:
        script.run(lambda: predict.main(arguments))
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert "broken.jpg: cannot be read as an image (cut off" in printed.err
    assert [entry["image"] for entry in json.loads(printed.out)] == [str(path) for path in good]


def test_predictions_that_are_not_finite_are_named_and_not_printed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("runs/tiny/fold0/weights.safetensors")
    with safe_open(path, "pt") as saved:
        metadata = saved.metadata()
    save_file(load_file(path) | {"head.1.bias": torch.full((6,), torch.nan)}, path, metadata)
    image = str(next(IMAGES.iterdir()))
    with pytest.raises(UserError, match=rf"{image}: .*not a finite number"):
        results(capsys, image, "--format", "csv")
    assert image not in capsys.readouterr().out


def test_a_name_cannot_break_the_table(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\nb.jpg"
    shutil.copy(next(IMAGES.iterdir()), name)
    lines = results(capsys, name).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(r"a\x1b[31m\nb.jpg  ")
    assert json.loads(results(capsys, name, "--format", "json"))[0]["image"] == name


def test_results_alone_are_on_stdout(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    predict.main([str(IMAGES), "--format", "json"])
    printed = capfd.readouterr()
    assert len(json.loads(printed.out)) == len(list(IMAGES.iterdir()))
    assert "the run that finished last: runs/tiny" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.jpg", "input/train.csv/x"], r"gone\.jpg: no such image or folder(.|\n)*train\.csv/x: no such"),
        (["empty"], "empty: no image in this folder"),
        (["x" * 300], "no such image"),
        (["input", "--top", "0"], "--top 0"),
        (["input", "--out", "empty"], "empty: is a folder"),
        (["input", "--run", "runs/other"], "not a run"),
        (["input", "--folds", "full"], "full not trained"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_printed(
    arguments: list[str], message: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message):
        predict.main(arguments)
    assert capsys.readouterr().out == ""


def test_an_older_file_of_other_content_is_kept(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.csv").write_text("mine\n")
    for _ in range(2):
        assert results(capsys, str(IMAGES), "--format", "csv", "--out", "out.csv") == ""
    assert Path("out.1.csv").read_text() == "mine\n"
    assert not Path("out.2.csv").exists()
    assert len(pd.read_csv("out.csv")) == len(list(IMAGES.iterdir()))
