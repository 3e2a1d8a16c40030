"""Labels and numbers with every command: what works for classes works for them, or is refused at once."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import blend
import check
import distill
import export
import infer
import kernel
import predict
import relabel
import report
import train
from scenes.console import UserError
from tiny import TINY

LABELS = ["data.label_column=tags", "data.label_separator=' '", "metric=labels_f1_micro"]
NUMBER = ["data.label_column=weight", "task=number", "metric=rmse"]
TASKS = pytest.mark.parametrize("settings", [LABELS, NUMBER], ids=["labels", "number"])


def _rewrite(root: Path) -> None:
    """Gives the sample's rows a set of tags and a weight, both determined by their class."""
    rows = pd.read_csv(root / "train.csv", dtype=str)
    sets = {"0": "red", "1": "red blue", "2": "blue", "3": "green", "4": "green red", "5": "blue green"}
    rows["tags"] = rows["label"].map(sets)
    rows["weight"] = (rows["label"].astype(float) * 1.5 + 2 + np.arange(len(rows)) % 3 / 10).round(2)
    rows[["image_name", "tags", "weight"]].to_csv(root / "train.csv", index=False)


def _sample(settings: list[str]) -> None:
    column = "tags" if settings is LABELS else "weight"
    test = pd.read_csv("input/test.csv", dtype=str)
    with Path("input/sample_submission.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image_name", column], *([name, "red"] for name in test["image_name"])])
    if settings is NUMBER:
        test.assign(weight=1.0)[["image_name", "weight"]].to_csv("input/sample_submission.csv", index=False)


@TASKS
def test_every_command_serves_the_task(
    settings: list[str], workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _rewrite(Path("input"))
    _sample(settings)
    tiny = [*TINY, *settings]
    check.main(["tiny.yaml", "--set", *settings])
    for name in ("one", "two"):
        train.main(["tiny.yaml", "--set", *tiny, f"name={name}", f"seed={len(name)}", "--submit"])
    metrics = json.loads(Path("runs/one/metrics.json").read_text())
    assert metrics["metric"]["name"] == settings[2].partition("=")[2]
    assert np.isfinite([metrics["metric"]["value"], metrics["metric"]["se"]]).all()

    submission = pd.read_csv("submissions/one.csv", dtype=str, keep_default_na=False)
    sample = pd.read_csv("input/sample_submission.csv", dtype=str)
    assert list(submission) == list(sample) and submission["image_name"].equals(sample["image_name"])
    answers = submission.iloc[:, 1]
    if settings is NUMBER:
        assert answers.astype(float).between(2.0, 9.7).all()
    else:
        assert set(" ".join(answers).split()) <= {"red", "blue", "green"}

    first = Path("submissions/one.csv").read_bytes()
    infer.main(["--run", "runs/one", "--out", "again.csv"])
    assert Path("again.csv").read_bytes() == first

    capsys.readouterr()
    predict.main(["input/SceneImages", "--run", "runs/one", "--format", "json"])
    shown = json.loads(capsys.readouterr().out)
    key = "value" if settings is NUMBER else "probability"
    assert len(shown) == 120 and all(np.isfinite(each[key]) for each in shown)

    kernel.main(["build", "--run", "runs/one", "--owner", "someone", "--competition", "some-competition"])
    assert f"{metrics['metric']['value']:.4f} ±" in Path("runs/one/kaggle/kernel/notebook.ipynb").read_text()

    blend.main(["runs/one", "runs/two"])
    assert Path("submissions/blend.csv").exists()
    report.main(["runs/one", "runs/two"])
    distill.main(["runs/one", "runs/two"])
    soft = ["data.soft_targets=../runs/one/soft_targets.csv", "train.mixup=0.2", "name=student"]
    train.main(["tiny.yaml", "--set", *tiny, *soft, "--folds", "0"])
    train.main(["tiny.yaml", "--set", *tiny, "name=early", "train.early_stopping=1", "train.monitor=metric"])
    with pytest.raises(UserError, match="class labels"):
        relabel.main(["runs/one"])


@TASKS
def test_a_run_becomes_an_onnx_file(settings: list[str], workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from scenes.data.decode import decode
    from scenes.inference import export as onnx_export
    from scenes.inference import int8

    _rewrite(Path("input"))
    rows = pd.read_csv("input/train.csv", dtype={"weight": float})
    rows.assign(weight=rows["weight"] * 1e5).to_csv("input/train.csv", index=False)  # float32 rounds these by 0.03
    Path("input/sample_submission.csv").unlink()
    train.main(["tiny.yaml", "--folds", "0", "--set", *TINY, *settings, "--submit"])
    monkeypatch.setattr(onnx_export, "CHECKED", 6)
    monkeypatch.setattr(int8, "CALIBRATED_ON", 6)
    export.main(["runs/tiny", "--to", "onnx", "--int8"])
    session = onnxruntime.InferenceSession("runs/tiny/tiny.onnx")
    table = pd.read_csv("submissions/tiny_probabilities.csv")
    image = decode(Path("input/SceneImages", table["image_name"][0]), 48).pixels
    (made,) = session.run(None, {session.get_inputs()[0].name: image[None]})
    np.testing.assert_allclose(made[0], table.iloc[0, 1:].to_numpy(float), rtol=0.02, atol=0.02)
    measured = json.loads(Path("runs/tiny/tiny.int8.json").read_text())
    assert measured["metric"] == settings[2].partition("=")[2]
    assert 48 - 6 <= measured["n"] < 48  # the fold's held-out rows, except those used for calibration
    assert np.isfinite([*measured["scores"]["int8"], measured["change"], measured["change_se"]]).all()
    (made,) = onnxruntime.InferenceSession("runs/tiny/tiny.int8.onnx").run(None, {"images": image[None]})
    np.testing.assert_allclose(made[0], table.iloc[0, 1:].to_numpy(float), rtol=0.3, atol=0.3)
