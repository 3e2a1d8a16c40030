"""Bundles are complete, the same every time, accepted by the kaggle command, and never overwrite a user's work."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from safetensors.torch import load_file

import infer
import kernel
from scenes.console import UserError
from scenes.kaggle.bootstrap import sha256
from scenes.kaggle.target import Target


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def acceptable(built: Path) -> None:
    """Checks what `kaggle datasets create` and `kaggle kernels push` of CLI 2.2.5 check before they upload anything."""
    dataset = read(built / "dataset/dataset-metadata.json")
    slug = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
    owner, name = dataset["id"].split("/")
    assert slug.fullmatch(owner) and slug.fullmatch(name)
    assert 6 <= len(name) <= 50 and 6 <= len(dataset["title"]) <= 50
    assert len(dataset["licenses"]) == 1 and dataset["licenses"][0]["name"]

    about = read(built / "kernel/kernel-metadata.json")
    owner, name = about["id"].split("/")
    assert slug.fullmatch(name) and 5 <= len(about["title"]) <= 50
    assert re.sub(r"[^a-z0-9]+", "-", about["title"].lower()) == name, "the title resolves to the slug"
    assert about["language"] in ("python", "r", "rmarkdown") and about["kernel_type"] in ("script", "notebook")
    assert (built / "kernel" / about["code_file"]).is_file()
    assert about["dataset_sources"] == [dataset["id"]]
    assert (about["enable_internet"], about["enable_gpu"], about["machine_shape"]) == (False, True, "NvidiaTeslaT4")


def test_the_bundle_is_complete_and_acceptable(built: Callable[..., Path]) -> None:
    folder = built()
    acceptable(folder)
    manifest = read(folder / "dataset/manifest.json")
    parts = set(everything(folder / "dataset")) - {"manifest.json", "dataset-metadata.json"}
    assert set(manifest["parts"]) == parts
    assert all(sha256(folder / "dataset" / part) == digest for part, digest in manifest["parts"].items())
    assert {"src/infer.py", "src/scenes/config.py", "pyproject.toml", "runs/tiny/config.yaml"} <= parts
    assert {"src/ruamel/yaml/__init__.py", "src/iterstrat/ml_stratifiers.py"} <= parts, "Kaggle's image may lack them"
    assert {f"runs/tiny/fold{fold}/weights.safetensors" for fold in (0, 1)} <= parts
    assert not [part for part in parts if "__pycache__" in part or part.endswith((".jpg", "test.csv", "last.pt"))]
    assert manifest["folds"] == [0, 1]
    assert "torch" in read(folder / "built.json")["made_with"]["packages"]
    assert read(folder / "kernel/kernel-metadata.json")["competition_sources"] == ["scenes"]


def test_the_notebook_tells_the_scores(built: Callable[..., Path]) -> None:
    folder = built("--folds", "1")
    notebook = nbformat.read(folder / "kernel/notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    story = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    metrics = read(Path("runs/tiny/metrics.json"))
    assert f"| fold1 | 48 | {metrics['per_fold']['1']['accuracy']:.4f} ±" in story
    assert f"| all 2 folds | 96 | {metrics['accuracy']:.4f} ±" in story
    assert "fold0" not in story


def test_test_rows_of_the_sample_are_named(built: Callable[..., Path]) -> None:
    Path("input/test.csv").unlink()
    folder = built()
    assert "test_csv: sample_submission.csv" in (folder / "dataset/runs/tiny/config.yaml").read_text()


def test_a_second_build_changes_no_byte(built: Callable[..., Path]) -> None:
    first = everything(built())
    assert everything(built()) == first


def test_a_commit_that_changes_no_file_of_it_makes_no_new_dataset(
    built: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = everything(built() / "dataset")
    git = tmp_path / "bin/git"
    git.parent.mkdir()
    git.write_text(f"#!/bin/sh\necho {'1' * 40}\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{git.parent}:{os.environ['PATH']}")
    folder = built()
    assert everything(folder / "dataset") == first
    assert read(folder / "built.json")["made_with"]["commit"] == "1" * 40


def test_a_rebuild_replaces_what_was_built_and_keeps_what_a_person_changed(
    built: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = built()
    built("--folds", "0")
    assert sorted(path.name for path in folder.iterdir()) == ["built.json", "dataset", "kernel"]
    assert not (folder / "dataset/runs/tiny/fold1").exists()
    (folder / "kernel/notebook.ipynb").write_text("mine")
    (folder / "dataset/notes.txt").write_text("mine too")
    capsys.readouterr()
    built()
    assert (folder / "kernel.1/notebook.ipynb").read_text() == "mine"
    assert (folder / "dataset.1/notes.txt").read_text() == "mine too"
    assert not (folder / "dataset/notes.txt").exists()
    assert "was changed since it was built" in capsys.readouterr().out


def test_a_build_removes_what_a_killed_one_left(built: Callable[..., Path]) -> None:
    Path("runs/tiny/kaggle/.build-killed/dataset").mkdir(parents=True)
    assert sorted(path.name for path in built().iterdir()) == ["built.json", "dataset", "kernel"]


def test_a_failed_build_leaves_the_last_one(built: Callable[..., Path]) -> None:
    first = everything(built())
    Path("runs/tiny/fold0/weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"fold0/weights\.safetensors"):
        built("--half")
    assert everything(Path("runs/tiny/kaggle")) == first


def test_half_precision_is_measured_on_the_held_out_rows(
    built: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    full = built() / "dataset/runs/tiny/fold0/weights.safetensors"
    exact, size = load_file(full), full.stat().st_size
    folder = built("--half")
    printed = capsys.readouterr().out
    metrics = read(Path("runs/tiny/metrics.json"))
    about = read(folder / "dataset/manifest.json")["half"]
    assert about["n"] == 96 and about["full"] == pytest.approx(metrics["accuracy"], abs=0.03)
    assert about["metric"] == "accuracy"
    assert about["half"] == pytest.approx(about["full"], abs=0.05)
    assert 0 < about["largest_change"] < 0.05
    assert re.search(rf"OOF accuracy {about['half']:.4f} instead of {about['full']:.4f} \([+-]\d\.\d+ ± ", printed)
    halved = load_file(full)
    assert full.stat().st_size < 0.75 * size
    assert {value.dtype for value in halved.values()} == {torch.float16, torch.float32, torch.int64}
    assert all(
        torch.allclose(halved[name].to(value.dtype), value, rtol=1e-3, atol=1e-4) for name, value in exact.items()
    )
    shutil.rmtree("runs/tiny/fold0")
    shutil.copytree(full.parent, "runs/tiny/fold0")
    infer.main(["--run", "runs/tiny", "--folds", "0", "--out", "half.csv"])


def test_half_precision_refuses_other_training_data(built: Callable[..., Path]) -> None:
    lines = Path("input/train.csv").read_text().splitlines()
    Path("input/train.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    with pytest.raises(UserError, match=r"training data changed"):
        built("--half")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--owner", "Some One"], "--owner 'Some One'"),
        (["--competition", "https://x"], "--competition 'https://x'"),
        (["--folds", "7"], "there are 2 folds"),
        (["--budget-minutes", "0"], "--budget-minutes"),
        (["--budget-minutes", "nan"], "--budget-minutes"),
        (["--budget-minutes", "inf"], "--budget-minutes"),
        (["--set", "data.image_dir=/home/me/images"], "data.image_dir: /home/me/images is not below"),
        (["--set", "data.test_csv=../test.csv"], "data.test_csv"),
    ],
)
def test_what_cannot_work_there_is_refused(built: Callable[..., Path], options: list[str], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        built(*options)
    assert not list(Path("runs/tiny/kaggle").glob("*"))


@pytest.mark.parametrize("name", ["a", "x" * 100, "Big_Run.v2", "é", "0", "a-" * 40])
def test_any_run_name_makes_acceptable_slugs(name: str) -> None:
    target = Target("someone", "scenes", name)
    for slug in (target.kernel, target.dataset):
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug) and 6 <= len(slug) <= 50
    assert target.kernel != target.dataset
    assert Target("someone", "scenes", f"{name}x").kernel != target.kernel
    assert Target("someone", "scenes", f"{name}ü").kernel != target.kernel


# ---------------------------------------------------------------------------------------------------- training


def build_training(*settings: str) -> Path:
    options = ["--owner", "someone", "--competition", "scenes"]
    kernel.main(["build", "--train", "tiny.yaml", *options, "--set", "model.name=test_efficientnet", *settings])
    return Path("runs/tiny/kaggle_train")


def test_a_training_kernel_brings_its_pretrained_weights(workspace: Path) -> None:
    Path("input/weights").mkdir()
    Path("input/weights/test_efficientnet.safetensors").write_bytes(b"weights")
    folder = build_training()
    acceptable(folder)
    assert (folder / "dataset/weights/test_efficientnet.safetensors").read_bytes() == b"weights"
    Path("input/weights/test_efficientnet.safetensors").rename("other.safetensors")
    folder = build_training("model.weights=other.safetensors")
    assert (folder / "dataset/weights/test_efficientnet.safetensors").read_bytes() == b"weights"
    assert "weights: local" in (folder / "dataset/config.yaml").read_text()


@pytest.mark.parametrize("key", ["near_duplicates", "soft_targets"])
def test_lists_that_a_kernel_lacks_are_refused(workspace: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{key}[\s\S]*a kernel does not include it"):
        build_training(f"data.{key}=../list.csv")


def test_without_local_weights_it_says_where_it_looked(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"no weights for test_efficientnet[\s\S]*input/weights"):
        build_training()
    assert not list(Path("runs/tiny/kaggle_train").glob("*"))
