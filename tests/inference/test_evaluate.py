"""The scores over all folds: the metric first, then the task's own scores, calibration and decoding."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from scenes.competition.task import Labels, Number, Task, class_task
from scenes.config import Config
from scenes.data.folds import ALWAYS_TRAINED
from scenes.inference.evaluate import evaluate_run
from scenes.inference.models import chosen_ensemble
from scenes.runs import Run

ROWS, FOLDS = 600, 3
NAMES = [f"{row}.jpg" for row in range(ROWS)]
FOLD_OF = np.arange(ROWS) % FOLDS
CLASSES = class_task(["0", "1", "2", "3"])
LABELS = Labels(["rust", "scab"], ["Rust", "Scab"])
NUMBER = Number.of("age", np.array([0.0, 100.0], np.float32))


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def predicted(task: Task, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Targets, and overconfident predictions under two views."""
    if task.kind == "number":
        targets = random.uniform(0, 100, ROWS).astype(np.float32)
        return targets, targets[None, :, None] + random.normal(size=(2, ROWS, 1)) * 10
    noise = random.normal(size=(2, ROWS, task.outputs))
    if task.kind == "labels":
        flags = (random.random((ROWS, task.outputs)) < 0.2).astype(np.float32)
        return flags, 1 / (1 + np.exp(-6 * (2 * flags - 1 + noise - 0.5)))
    targets = random.integers(0, 4, ROWS)
    return targets, softmax(6 * (np.eye(4)[targets] + noise))


def evaluated(task: Task, metric: str | None, fold_of: np.ndarray = FOLD_OF) -> dict[str, Any]:
    """The metrics.json of a run whose folds made these predictions."""
    targets, views = predicted(task, np.random.default_rng(0))
    run, config = Run(Path("runs/t")), Config(name="t", metric=metric, data={"folds": FOLDS})
    for fold in range(FOLDS):
        rows = np.flatnonzero(fold == fold_of)
        run.fold_folder(fold).mkdir(parents=True)
        run.weights_file(fold).touch()
        content = {"rows": rows, "probabilities": np.ascontiguousarray(views[:, rows].astype(np.float32))}
        save_file(content, run.fold_oof_file(fold), {"views": "plain,hflip"})
    returned = evaluate_run(run, config, task, NAMES, targets, fold_of)
    kept = json.loads(run.metrics_file.read_text())
    assert kept == json.loads(json.dumps(returned))
    chosen = chosen_ensemble(run, config)
    assert chosen.calibration.temperatures == kept["calibration"]["temperatures"]
    assert chosen.decoding.rule == kept["decoding"]["rule"]
    table = pd.read_csv(run.oof_file, dtype={"label": str})
    assert list(table) == ["image_name", "label", "fold", *task.columns]
    is_scored = fold_of >= 0
    assert table["image_name"].tolist() == [name for name, scored in zip(NAMES, is_scored, strict=True) if scored]
    np.testing.assert_array_equal(task.from_texts(table["label"].tolist()), targets[is_scored])
    return kept


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_classes_are_calibrated_and_scored_by_accuracy_unless_told_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = evaluated(CLASSES, None)
    assert (kept["metric"]["name"], kept["metric"]["value"]) == ("accuracy", kept["accuracy"])
    calibration = kept["calibration"]
    assert calibration["temperatures"][0] > 1
    assert calibration["log_loss_after"] < calibration["log_loss_before"]
    assert 0 < calibration["ece_after"] < 1
    assert kept["log_loss"] == calibration["log_loss_after"]
    assert f"CV accuracy: {kept['accuracy']:.4f}" in capsys.readouterr().out


def test_the_metric_of_the_competition_is_the_headline(capsys: pytest.CaptureFixture[str]) -> None:
    kept = evaluated(CLASSES, "quadratic_kappa")
    assert kept["metric"]["name"] == "quadratic_kappa"
    assert kept["metric"]["value"] >= kept["decoding"]["plain_value"]
    assert all({"value", "se", "accuracy", "log_loss", "n", "cost"} <= set(fold) for fold in kept["per_fold"].values())
    printed = capsys.readouterr().out
    assert f"CV quadratic_kappa: {kept['metric']['value']:.4f}" in printed
    assert f"{kept['accuracy']:.4f}" in printed


def test_a_score_without_the_rarest_rows_is_called_optimistic() -> None:
    assert evaluated(CLASSES, None)["optimistic"] is None
    shutil.rmtree("runs")
    fold_of = np.where(np.arange(ROWS) < 7, ALWAYS_TRAINED, FOLD_OF)
    assert evaluated(CLASSES, None, fold_of)["optimistic"].startswith("7 rows")


@pytest.mark.parametrize("metric", [None, "labels_f1_micro"])
def test_labels(metric: str | None) -> None:
    kept = evaluated(LABELS, metric)
    assert kept["metric"]["name"] == (metric or "roc_auc")
    assert set(kept["per_label"]) == {"rust", "scab"}
    assert 0.5 < kept["per_label"]["rust"]["auc"] <= 1
    assert kept["calibration"]["log_loss_after"] <= kept["calibration"]["log_loss_before"]
    if metric:
        assert kept["metric"]["value"] >= kept["decoding"]["plain_value"]


def test_thresholds_are_for_the_metric_they_were_chosen_by() -> None:
    run = Run(Path("runs/t"))
    run.folder.mkdir(parents=True)
    decoding = {"rule": "labels", "values": [0.3, 0.4], "lowest": 0.0}
    run.metrics_file.write_text(json.dumps({"views": {}, "metric": {"name": "labels_f1_micro"}, "decoding": decoding}))
    for metric, rule in ((None, "labels"), ("labels_f1_micro", "labels"), ("accuracy", "plain")):
        assert chosen_ensemble(run, Config(name="t", metric=metric)).decoding.rule == rule


def test_numbers() -> None:
    kept = evaluated(NUMBER, None)
    assert (kept["metric"]["name"], kept["metric"]["larger_is_better"]) == ("rmse", False)
    assert kept["metric"]["value"] == pytest.approx(10 / 2**0.5, rel=0.1)  # two views with independent errors
    assert kept["rmse"] == kept["metric"]["value"]
    assert 0.9 < kept["r2"] < 1
    assert kept["calibration"]["temperatures"] == []
