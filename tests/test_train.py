"""train.py end to end on a tiny competition: what it writes, resumes, refuses."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from safetensors.numpy import load_file

import infer
import train
from processes import exit_code, fork
from scenes import script
from scenes.console import StoppedError, UserError
from scenes.data.augment import AugmentedImages
from scenes.model.backbone import Classifier
from scenes.training import checkpoint, recipe
from tiny import TINY, fit, results

SCRIPT = Path(train.__file__)


def at_step(patch: pytest.MonkeyPatch, at: int, act: Callable[[], None]) -> None:
    """Acts when training begins a step, which is when it asks for the learning rate."""
    learning_rate = recipe.learning_rate

    def watched(step: int, *arguments: Any) -> float:
        if step == at:
            act()
        return learning_rate(step, *arguments)

    patch.setattr(recipe, "learning_rate", watched)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_run_leaves_what_it_promises(trained: Path) -> None:
    run = trained / "runs/tiny"
    for name in ("config.yaml", "folds.csv", "oof.csv", "metrics.json", "environment.json"):
        assert (run / name).is_file()
    for fold in ("fold0", "fold1"):
        assert {"weights.safetensors", "last.pt", "history.csv"} <= {file.name for file in (run / fold).iterdir()}
        history = pd.read_csv(run / fold / "history.csv")
        assert history["epoch"].tolist() == [1, 2]
        assert history[["train_loss", "val_loss", "val_accuracy", "lr"]].notna().all(axis=None)


def test_out_of_fold_predictions_cover_each_row_once_and_agree_with_the_metrics(trained: Path) -> None:
    oof = pd.read_csv(trained / "runs/tiny/oof.csv", dtype={"label": str})
    rows = pd.read_csv(trained / "input/train.csv", dtype=str)
    folds = pd.read_csv(trained / "runs/tiny/folds.csv")
    assert oof["image_name"].tolist() == rows["image_name"].tolist()
    assert oof["label"].tolist() == rows["label"].tolist()
    assert oof["fold"].tolist() == folds["fold"].tolist()
    probabilities = oof[list("012345")].to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    metrics = json.loads((trained / "runs/tiny/metrics.json").read_text())
    hits = probabilities.argmax(1) == oof["label"].astype(int)
    assert metrics["n"] == 96
    assert metrics["accuracy"] == pytest.approx(hits.mean())
    assert metrics["accuracy_se"] == pytest.approx(hits.std(ddof=1) / 96**0.5)
    assert sum(sum(row.values()) for row in metrics["confusion"].values()) == 96


def test_the_same_seed_gives_the_same_bytes_with_and_without_workers(finished: Path) -> None:
    before = results(finished)
    assert len(before) == 6
    Path("runs/tiny").rename("runs/first")
    fit("loader.workers=2")
    assert not multiprocessing.active_children()
    after = results(finished)
    assert {name: content for name, content in after.items() if "tiny" in name} == before


def test_another_seed_gives_another_model_on_the_same_folds(finished: Path) -> None:
    fit("--folds=0", "name=other", "seed=1")
    assert Path("runs/other/folds.csv").read_bytes() == Path("runs/tiny/folds.csv").read_bytes()
    one, other = (load_file(f"runs/{name}/fold0/weights.safetensors") for name in ("tiny", "other"))
    assert not all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("stop_at", [1, 4])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    stop_at: int, trained: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, stop_at, interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit("train.checkpoint_minutes=1e-9")
    fit()
    assert results(workspace) == results(trained)


def test_finished_folds_are_skipped_and_folds_can_come_one_by_one(trained: Path, workspace: Path) -> None:
    fit("--folds=1")
    metrics = json.loads(Path("runs/tiny/metrics.json").read_text())
    assert metrics["folds"] == [1]
    assert metrics["n"] == 48
    written = Path("runs/tiny/fold1/weights.safetensors").stat().st_mtime_ns
    fit("--folds=0-1")
    assert Path("runs/tiny/fold1/weights.safetensors").stat().st_mtime_ns == written
    assert results(workspace) == results(trained)


def test_a_dry_run_leaves_no_run(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit("--dry-run")
    assert "would take about" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_shuffled_labels_score_chance(workspace: Path) -> None:
    table = pd.read_csv("input/train.csv")
    table["label"] = np.random.default_rng(0).permutation(table["label"])
    table.to_csv("input/train.csv", index=False)
    fit("train.epochs=5", "model.dropout=0.0")
    metrics = json.loads(Path("runs/tiny/metrics.json").read_text())
    assert abs(metrics["accuracy"] - 1 / 6) < 3 * (1 / 6 * 5 / 6 / 96) ** 0.5


def test_a_setting_that_cannot_change_the_result_may_change(finished: Path) -> None:
    before = results(finished)
    fit("loader.workers=1", "train.checkpoint_minutes=5")
    assert results(finished) == before


def test_early_stopping_restores_the_best_epoch_and_is_called_optimistic(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("--folds=0", "train.early_stopping=1", "train.lr=1.0", "train.epochs=30", "train.clip_norm=null")
    history = pd.read_csv("runs/tiny/fold0/history.csv")
    assert len(history) < 30
    metrics = json.loads(Path("runs/tiny/metrics.json").read_text())
    assert "early stopping" in metrics["optimistic"]
    assert metrics["views"]["plain"]["log_loss"] == pytest.approx(history["val_loss"].min(), rel=1e-4)
    assert "optimistic" in capsys.readouterr().out


def test_accumulation_does_not_change_the_weights(workspace: Path) -> None:

    common = ["--folds=0", "train.batch_norm=frozen", "train.epochs=1", "train.lr=1e-3"]
    fit(*common)
    fit(*common, "name=split", "train.accumulate=4")
    one, four = (load_file(f"runs/{name}/fold0/weights.safetensors") for name in ("tiny", "split"))
    assert max(np.abs(one[name] - four[name]).max() for name in one) < 1e-4


@pytest.mark.parametrize(
    ("settings", "has_probe"),
    [
        (["train.batch_norm=frozen"], True),
        (["train.batch_norm=batch"], False),  # the first step changes the features the probe would be fitted on
        (["train.batch_norm=batch", "train.trainable_stages=0"], True),
        (["train.batch_norm=batch", "train.epochs=0"], True),
    ],
)
def test_the_head_starts_as_a_probe_where_its_features_stay(
    settings: list[str], has_probe: bool, workspace: Path
) -> None:
    fit("--folds=0", "model.name=tf_efficientnet_lite0.in1k", "model.weights=local", "train.epochs=1", *settings)
    assert (0 in pd.read_csv("runs/tiny/fold0/history.csv")["epoch"].tolist()) is has_probe


def test_a_diverging_run_stops_and_keeps_the_last_good_state(workspace: Path) -> None:
    with pytest.raises(UserError, match="no longer finite"):
        fit("--folds=0", "train.lr=1e30", "train.optimizer=sgd", "train.clip_norm=null", "train.epochs=4")
    assert not Path("runs/tiny/fold0/weights.safetensors").exists()


def test_averaged_weights_are_the_ones_that_count(workspace: Path) -> None:
    fit("--folds=0", "train.epochs=3", "train.average_epochs=3")
    fit("--folds=0", "train.epochs=3", "name=raw")
    averaged, raw = (Path(f"runs/{name}/fold0/weights.safetensors").read_bytes() for name in ("tiny", "raw"))
    assert averaged != raw
    beside, alone = (pd.read_csv(f"runs/{name}/fold0/history.csv") for name in ("tiny", "raw"))
    assert beside["val_loss"][0] == alone["val_loss"][0]  # the mean of one epoch
    assert beside["val_loss"][1] != alone["val_loss"][1]
    assert list(beside["train_loss"]) == list(alone["train_loss"])


def test_mixed_images_train_and_resume_to_the_same_bytes(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["--folds=0", "train.mixup=0.4", "train.cutmix=1", "model.drop_path=0.2"]
    fit(*settings)
    expected = results(workspace)
    fit("--folds=0", "name=plain")
    assert results(workspace)["runs/plain/oof.csv"] != expected["runs/tiny/oof.csv"]
    shutil.rmtree("runs")
    save = checkpoint.save

    def dies(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", dies)
        fit(*settings)
    fit(*settings)
    assert results(workspace) == expected


def test_images_may_be_larger_at_prediction(workspace: Path) -> None:
    fit("--folds=0")
    fit("--folds=0", "name=larger", "infer.image_size=48")
    files = (Path(f"runs/{name}/fold0/weights.safetensors") for name in ("tiny", "larger"))
    weights, larger = (load_file(file) for file in files)
    assert all(np.array_equal(weights[name], larger[name]) for name in weights)
    oof, other = (pd.read_csv(f"runs/{name}/oof.csv").iloc[:, 3:].to_numpy() for name in ("tiny", "larger"))
    assert np.abs(oof - other).max() > 1e-5
    infer.main(["--run", "runs/larger", "--out", "as_trained.csv"])
    infer.main(["--run", "runs/larger", "--out", "small.csv", "--set", "infer.image_size=32"])
    one, two = (pd.read_csv(f"{name}_probabilities.csv").iloc[:, 1:].to_numpy() for name in ("as_trained", "small"))
    assert np.abs(one - two).max() > 1e-5


def test_mixing_needs_images(workspace: Path) -> None:
    with pytest.raises(UserError, match="no images to work on"):
        fit("augment=none", "train.trainable_stages=0", "train.mixup=0.2")


def test_a_frozen_body_without_augmentation_trains_its_head_on_features(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    fit("--folds=0", "augment=none", "train.trainable_stages=0", "train.linear_probe=false", "train.epochs=5")
    assert "computed once" in capsys.readouterr().out
    assert list(Path(".cache").glob("features-*.npy"))
    fit("--folds=0", "name=start", "augment=none", "train.trainable_stages=0", "train.lr=1e-9", "train.epochs=1")
    one, start = (load_file(f"runs/{name}/fold0/weights.safetensors") for name in ("tiny", "start"))
    changed = {name for name in one if not np.array_equal(one[name], start[name])}
    assert changed == {"head.0.weight", "head.0.bias"} or changed == {"head.1.weight", "head.1.bias"}


def test_a_frozen_body_is_the_one_of_the_features_in_every_fold(workspace: Path) -> None:
    frozen = ["augment=none", "train.trainable_stages=0", "train.linear_probe=false", "train.epochs=1"]
    fit(*frozen)
    fit("--folds=1", "name=alone", *frozen)
    weights = [load_file(f"runs/{fold}/weights.safetensors") for fold in ("tiny/fold0", "tiny/fold1", "alone/fold1")]
    body = [name for name in weights[0] if name.startswith("body.")]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in body)
    assert all(np.array_equal(weights[1][name], weights[2][name]) for name in weights[1])


@pytest.mark.parametrize("name", ["train", "infer", "prepare"])
def test_help_needs_no_heavy_module(name: str) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['{name}.py', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT.with_name(name + '.py'))!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'pandas', 'numpy', 'sklearn', 'cv2', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SCRIPT.parent, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_predicting_imports_nothing_that_only_training_needs() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import scenes.inference.submit\n"
        "needless = {'albumentations', 'sklearn', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {needless}' if needless else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_out_of_memory_splits_the_batch_and_trains_the_same(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--folds=0", "train.batch_norm=frozen", "train.epochs=1", "train.lr=1e-3"]
    fit(*common)
    forward = Classifier.forward

    def small_memory(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        if self.training and len(images) > 5:
            raise torch.OutOfMemoryError
        return forward(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "forward", small_memory)
        fit(*common, "name=small")
        assert "split into 4 parts" in capsys.readouterr().out
        patch.setattr(Classifier, "forward", lambda self, images: small_memory(self, images.repeat(6, 1, 1, 1)))
        with pytest.raises(UserError, match="not even one image"):
            fit(*common, "name=tiniest")
    assert pd.read_csv("runs/small/fold0/history.csv")["accumulate"].tolist() == [4]
    one, four = (load_file(f"runs/{name}/fold0/weights.safetensors") for name in ("tiny", "small"))
    assert max(np.abs(one[name] - four[name]).max() for name in one) < 1e-4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.accumulate=9"], r"train\.accumulate: .* 9 parts .* single row .* at most 8"),
        (["model.name=caformer_s18", "train.trainable_stages={0: 0, 1: 3}"], r"caformer_s18.*trainable_stages"),
        (["model.name=test_vit", "infer.image_size=40", "infer.tta=five_crop"], "infer: test_vit does not accept 40"),
    ],
)
def test_what_the_network_cannot_do_is_found_before_training(settings: list[str], says: str, workspace: Path) -> None:
    with pytest.raises(UserError, match=says):
        fit("--folds=0", *settings)
    assert not Path("runs").exists()


def test_an_optimiser_short_of_memory_says_what_to_do_and_the_run_resumes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", fails)
        with pytest.raises(UserError, match=r"fold0.*step 0.*--set train\.accumulate=2"):
            fit("--folds=0")
    fit("--folds=0", "train.accumulate=2")
    assert pd.read_csv("runs/tiny/fold0/history.csv")["accumulate"].tolist() == [2, 2]


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(workspace: Path) -> None:
    forward = Classifier.forward

    def fails(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return forward(self, images)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="mat1"):
        patch.setattr(Classifier, "forward", fails)
        fit("--folds=0")


def test_runs_of_different_precision_train_in_one_process(workspace: Path) -> None:
    Path("a.yaml").write_text("train: {precision: fp32}\nmodel: {name: test_efficientnet}")
    Path("b.yaml").write_text("train: {precision: bf16}\nmodel: {name: simple_cnn}")
    settings = [pair for pair in TINY if not pair.startswith(("model.name", "train.precision"))]
    train.main(["a.yaml", "b.yaml", "--folds=0", "--set", *settings, "train.epochs=1"])
    saved = {run: json.loads(Path(f"runs/{run}/precision.json").read_text())["train"] for run in "ab"}
    assert saved == {"a": "fp32", "b": "bf16"}
    train.main(["a.yaml", "--folds=0", "--set", *settings, "train.epochs=1", "name=again"])
    one, other = (load_file(f"runs/{name}/fold0/oof.safetensors")["probabilities"] for name in ("a", "again"))
    np.testing.assert_array_equal(one, other)


def test_a_run_resumes_in_the_precision_it_began_in(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--folds=0", "model.name=simple_cnn", "train.precision=auto", "infer.precision=auto"]

    def machine(has_bf16: bool) -> None:
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda: has_bf16)

    machine(has_bf16=True)
    fit(*settings)
    assert "training in bf16 (auto: this CPU computes in it)" in capsys.readouterr().out
    expected = results(workspace)
    shutil.rmtree("runs")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 4, interrupt)
        fit(*settings)
    machine(has_bf16=False)
    capsys.readouterr()
    fit(*settings)
    assert "training in bf16 (as the run began)" in capsys.readouterr().out
    assert results(workspace) == expected


def test_a_precision_this_machine_lacks_is_named_with_a_way_out(workspace: Path) -> None:
    fit("--folds=0", "train.precision=auto")
    Path("runs/tiny/fold0/oof.safetensors").unlink()
    Path("runs/tiny/precision.json").write_text('{"train": "fp16", "infer": "fp32"}')
    with pytest.raises(UserError, match=r"(?s)fp16.*on a GPU.*name=NEW"):
        fit("--folds=0", "train.precision=auto")


@pytest.mark.parametrize("how", ["signal", "budget"])
def test_a_run_that_stops_between_steps_resumes_to_the_same_bytes(
    how: str, trained: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if how == "signal":
            at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(StoppedError, match="same command") as stopped:
            fit(*(["train.time_budget_minutes=1e-9"] if how == "budget" else []))
    assert stopped.value.exit_code == (130 if how == "signal" else 3)
    assert Path("runs/tiny/fold0/last.pt").exists()
    fit()
    assert results(workspace) == results(trained)


def test_a_second_process_on_the_same_fold_is_refused(finished: Path) -> None:
    Path("runs/tiny/fold1/oof.safetensors").unlink()
    with FileLock("runs/tiny/fold1/.lock"), pytest.raises(UserError, match="another process is training this fold"):
        fit()


@pytest.mark.parametrize("setting", ["train.early_stopping=2", "train.schedule=plateau"])
def test_the_full_model_has_no_rows_to_validate_on(setting: str, workspace: Path) -> None:
    with pytest.raises(UserError, match="full holds out no rows"):
        fit("--folds=full", setting)


def test_a_class_of_one_group_trains_in_every_fold(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv("input/train.csv")
    table["group"] = np.where(table["label"] == 2, -1, table.index)
    table.to_csv("input/train.csv", index=False)
    fit("data.group_column=group", "train.epochs=1", "--submit")
    assert "1 of 6 classes" in (printed := capsys.readouterr().out) and "no held-out score" in printed
    folds, oof = pd.read_csv("runs/tiny/folds.csv"), pd.read_csv("runs/tiny/oof.csv")
    assert set(folds[folds["label"] == 2]["fold"]) == {-1}
    assert sorted(oof["image_name"]) == sorted(folds[folds["label"] != 2]["image_name"])
    assert json.loads(Path("runs/tiny/metrics.json").read_text())["per_class"]["2"]["support"] == 0
    assert len(pd.read_csv("submissions/tiny.csv")) == len(pd.read_csv("input/test.csv"))


def test_classes_of_one_row_can_be_trained_and_reported(workspace: Path) -> None:
    table = pd.read_csv("input/train.csv", dtype=str)
    table.loc[[0, 3], "label"] = ["seen once", "seen once too"]
    table.assign(mine=table.index % 2).to_csv("input/train.csv", index=False)
    fit("data.fold_column=mine", "train.epochs=1", "report=true")
    oof = pd.read_csv("runs/tiny/oof.csv", dtype=str)
    assert not {"seen once", "seen once too"} & set(oof["label"])
    assert len(oof) == len(table) - 2
    assert {"seen once", "seen once too"} <= set(oof.columns)
    fit("train.epochs=1", "--folds=full", "name=whole")
    assert Path("runs/whole/full/weights.safetensors").exists()


def test_the_full_model_needs_no_folds(workspace: Path) -> None:
    table = pd.read_csv("input/train.csv", dtype=str)
    table["label"] = (table.index // 2).astype(str)  # two rows each
    table.to_csv("input/train.csv", index=False)
    with pytest.raises(UserError, match=r"hold out no row.*--folds full"):
        fit("data.folds=5")
    fit("data.folds=5", "train.epochs=1", "--folds=full")


def test_classes_may_be_called_what_columns_are_called(workspace: Path) -> None:
    words = ["fold", "label", "image_name", "n", "accuracy", "[red]"]
    for name in ("train", "sample_submission"):
        table = pd.read_csv(f"input/{name}.csv")
        table["label"] = [words[label] for label in table["label"]]
        table.to_csv(f"input/{name}.csv", index=False)
    fit("--submit", "train.epochs=1")
    assert set(pd.read_csv("submissions/tiny.csv")["label"]) <= set(words)


def test_wandb_that_is_not_installed_is_reported_at_once(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        fit("train.wandb=project")
    assert not Path("runs").exists()


def test_each_epoch_is_scored_on_the_plain_view(workspace: Path) -> None:
    fit("--folds=0", "infer.tta=five_crop")
    fit("--folds=0", "name=plain", "infer.tta=none")
    histories = [
        pd.read_csv(f"runs/{name}/fold0/history.csv")[["val_loss", "val_accuracy"]] for name in ("tiny", "plain")
    ]
    pd.testing.assert_frame_equal(*histories)


def until_it_says(text: str, child: int) -> None:
    """Waits until a forked process has printed a text or has ended."""
    while not (Path("log.txt").exists() and text in Path("log.txt").read_text()):
        assert not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT), Path("log.txt").read_text()
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_process_group_saves_with_workers(number: signal.Signals, workspace: Path) -> None:
    def work() -> None:
        os.setsid()
        script.run(lambda: fit("loader.workers=2", "train.epochs=500"))

    child = fork(work)
    until_it_says("epoch 1:", child)
    os.killpg(child, number)
    assert exit_code(child) == 130, Path("log.txt").read_text()
    told = Path("log.txt").read_text()
    assert "everything is saved" in told
    assert "Traceback" not in told
    assert torch.load("runs/tiny/fold0/last.pt", weights_only=True)["step"] > 0


def test_a_first_signal_ends_the_wait_for_a_batch_that_never_comes(workspace: Path) -> None:
    def work() -> None:
        os.setsid()
        AugmentedImages.__getitems__ = lambda *_: (print("waiting"), time.sleep(600))  # type: ignore[method-assign]
        script.run(lambda: fit("loader.workers=1"))

    child = fork(work)
    until_it_says("waiting", child)
    os.kill(child, signal.SIGINT)
    assert exit_code(child) == 130, Path("log.txt").read_text()
    assert "everything is saved" in Path("log.txt").read_text()
    os.killpg(child, signal.SIGKILL)  # the worker, which is still asleep
