"""report.html end to end on a tiny trained run: its numbers, its images, hostile names, and what is missing."""

import errno
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import report
import train
from scenes.competition.decoding import PLAIN, Decoding
from scenes.competition.metric import metric_named
from scenes.competition.scores import class_scores
from scenes.competition.task import Labels, Number, Task, class_task
from scenes.config import ModelConfig
from scenes.console import UserError
from scenes.insight import errors, figures, label_errors, page, saliency
from scenes.insight.results import HeldOut
from scenes.model.backbone import Classifier
from tiny import TINY

HOSTILE = "<script>alert(1)</script>"
NAMES = ["buildings", "forest", "glacier", "mountain", "sea", "street"]
SECTIONS = ["Cross-validation", "Confusion", "Calibration", "Confident mistakes", "Least certain"]
SECTIONS += ["Likely label errors", "Views", "Curves", "Time and memory", "Config", "Environment"]


@pytest.fixture(scope="module")
def written(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A copy of the finished run with its report, and the report's text. Read-only."""
    root = tmp_path_factory.mktemp("report") / "root"
    shutil.copytree(trained, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        report.main(["runs/tiny", "--set", f"data.class_names=[{','.join(NAMES)}]"])
    yield root, (root / "runs/tiny/report.html").read_text()


def text_of(page: str) -> str:
    """A page's text, without its tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_the_report_has_all_sections_and_the_scores_of_metrics_json(written: tuple[Path, str]) -> None:
    root, html = written
    metrics = json.loads((root / "runs/tiny/metrics.json").read_text())
    said = text_of(html)
    assert re.findall(r"<h2>(.*)</h2>", html) == SECTIONS
    assert f"{metrics['accuracy']:.4f} ± {metrics['accuracy_se']:.4f}" in said
    for scores in metrics["per_fold"].values():
        assert f"{scores['n']} {scores['value']:.4f} ± {scores['se']:.4f} {scores['log_loss']:.4f}" in said
    for name, scores in zip(NAMES, metrics["per_class"].values(), strict=True):
        assert f"{name} {scores['support']} {scores['precision']:.3f} {scores['recall']:.3f}" in said
    counts = re.findall(r'<td class="(?:right|wrong|wrong empty)"[^>]*>(\d+)<', html)
    expected = [[metrics["confusion"].get(row, {}).get(column, 0) for column in "012345"] for row in "012345"]
    assert np.array(counts, int).reshape(6, 6).tolist() == expected
    assert len(re.findall("<svg", html)) >= 5
    assert {"fold0", "training", "prediction", "peak memory (MiB)"} <= set(re.findall(r"[\w ()]*[\w)]", html))


def test_images_have_grad_cam_and_captions(written: tuple[Path, str]) -> None:
    _, html = written
    captions = re.findall(r"<figcaption>(<b>.*?)</figcaption>", html)
    assert len(captions) >= 24
    assert all(re.search(r"\d+\.jpg, fold [01]$", caption) for caption in captions)
    assert html.count('class="gallery wide"') == 2


def test_likely_label_errors_are_listed(written: tuple[Path, str]) -> None:
    root, html = written
    found = pd.read_csv(root / "runs/tiny/label_errors.csv", dtype={"label": str, "suggested": str})
    assert list(found) == ["image_name", "label", "suggested", "probability", "quality"]
    assert (found["label"] != found["suggested"]).all()
    assert found["quality"].is_monotonic_increasing
    assert f"{len(found)} of 96 images have a label that contradicts" in text_of(html)


def test_the_same_run_gives_the_same_report(written: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, html = written
    monkeypatch.chdir(root)
    report.main(["--out", "again.html", "--set", f"data.class_names=[{','.join(NAMES)}]"])
    assert Path("again.html").read_text() == html
    assert len(html) < 2_000_000


def test_training_ends_with_a_report(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["tiny.yaml", "--submit", "--set", *TINY, "train.epochs=1", "report=true"])
    said = capsys.readouterr().out
    assert "report: runs/tiny/report.html\n" in said and "no report" not in said
    assert said.index("report: ") < said.index("next: upload")
    times = json.loads(Path("runs/tiny/fold1/time.json").read_text())
    assert {"training", "prediction"} <= set(times["stages"])
    assert all(times["memory"][stage]["memory_mib"] > 50 for stage in times["stages"])
    assert sum(times["stages"].values()) == pytest.approx(times["seconds"], abs=0.3)
    assert json.loads(Path("runs/tiny/time.json").read_text())["preparing"] >= 0


def test_a_report_that_fails_ends_no_run(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(page, "render", fail)
    train.main(["tiny.yaml", "--submit", "--set", *TINY, "report=true"])
    said = capsys.readouterr().out
    assert "no report: OSError: [Errno 28] No space left on device" in said
    assert "python src/report.py runs/tiny" in said and "next: upload" in said


def test_hostile_names_are_shown_as_they_are(finished: Path) -> None:
    evil = "<img src=x onerror=alert(1)>.jpg"
    oof = pd.read_csv("runs/tiny/oof.csv", dtype=str)
    oof["0"], oof["1"] = "0.0", "1.0"  # certain of class 1, so all other rows are mistakes
    name = oof.loc[oof["label"] == "0", "image_name"].iloc[0]
    Path("input/SceneImages", name).rename(Path("input/SceneImages", evil))
    for file in ("runs/tiny/oof.csv", "input/train.csv"):
        text = (oof.to_csv(index=False) if "oof" in file else Path(file).read_text()).replace(
            f"\n{name},", f"\n{evil},"
        )
        Path(file).write_text(text)
    report.main(["--set", f'data.class_names=["{HOSTILE}", "$x_{{", "雪", "a b", "e", "f"]'])
    html = Path("runs/tiny/report.html").read_text()
    assert html.count("<script") == 1 and "<img src=x" not in html
    assert "&lt;script&gt;alert(1)" in html and "&lt;img src=x" in html


def test_without_the_images_the_numbers_are_still_there(finished: Path) -> None:
    shutil.rmtree("input")
    report.main([])
    html = Path("runs/tiny/report.html").read_text()
    assert "none can be shown" in html and "Cross-validation" in html


def test_what_is_not_installed_is_named_with_the_way_to_get_it(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saliency, "is_available", lambda: False)
    monkeypatch.setattr(label_errors, "is_available", lambda: False)
    report.main([])
    html = Path("runs/tiny/report.html").read_text()
    assert "pip install captum" in html and "pip install cleanlab" in html
    assert not Path("runs/tiny/label_errors.csv").exists()
    assert html.count("<figcaption><b>") >= 12


def test_a_run_of_all_rows_has_a_report_without_scores(workspace: Path) -> None:
    train.main(["tiny.yaml", "--folds", "full", "--set", *TINY, "report=true"])
    html = Path("runs/tiny/report.html").read_text()
    assert "none were held out" in html and "Cross-validation" not in html
    assert "Training loss" in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none"], "not a run"),
        (["runs/tiny", "--set", "data.class_names=[a, b]"], "2 names for 6 outputs"),
        (["runs/tiny", "runs/tiny"], "runs? tiny"),
        (["runs/tiny", "--out", "runs"], "is a folder"),
    ],
)
def test_refusals(arguments: list[str], message: str, finished: Path) -> None:
    with pytest.raises(UserError, match=message):
        report.main(arguments)
    assert not list(Path().rglob("*.html"))


def test_a_run_without_a_trained_fold_is_refused(finished: Path) -> None:
    for file in Path("runs/tiny").glob("*/weights.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match="no fold is trained yet"):
        report.main(["runs/tiny"])


def test_folds_of_another_state_than_oof_csv_are_refused(finished: Path) -> None:
    shutil.rmtree("runs/tiny/fold1")
    with pytest.raises(UserError, match=r"oof\.csv: "):
        report.main([])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", "{"),
        ("metrics.json", "[]"),
        ("metrics.json", '{"folds": [0]}'),
        ("oof.csv", None),
        ("oof.csv", ""),
        ("fold0/history.csv", ""),
        ("fold0/time.json", "{"),
        ("environment.json", "x"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(file: str, content: str | None, finished: Path) -> None:
    path = Path("runs/tiny", file)
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=f"{file}: (missing or )?damaged"):
        report.main(["runs/tiny"])


def test_labels_in_oof_csv_that_the_run_does_not_know_are_refused(finished: Path) -> None:
    oof = pd.read_csv("runs/tiny/oof.csv", dtype=str)
    oof.loc[3, "label"] = "x"
    oof.to_csv("runs/tiny/oof.csv", index=False)
    with pytest.raises(UserError, match=r"oof\.csv: "):
        report.main(["runs/tiny"])


def test_a_comparison_pairs_the_images(finished: Path) -> None:
    shutil.copytree("runs/tiny", "runs/right")
    oof = pd.read_csv("runs/right/oof.csv", dtype={"label": str}).sample(frac=1, random_state=0)
    oof[list("012345")] = np.eye(6)[oof["label"].astype(int)] * 0.94 + 0.01  # always right; columns in another order
    oof.to_csv("runs/right/oof.csv", index=False)
    report.main(["runs/tiny", "runs/right", "--out", "pages/both.html"])
    accuracy = json.loads(Path("runs/tiny/metrics.json").read_text())["accuracy"]
    error = (accuracy * (1 - accuracy) / 95) ** 0.5
    said = text_of(Path("pages/both.html").read_text())
    assert "96 images that every run held out and predicted" in said
    wrong = round(96 * (1 - accuracy))
    assert re.search(rf"right 1\.0000 ± 0\.0000 \+{1 - accuracy:.4f} ± {error:.4f} .* {wrong} 0 ", said)
    assert Path("runs/right/report.html").is_file()


def test_runs_of_other_classes_are_not_compared(finished: Path) -> None:
    shutil.copytree("runs/tiny", "runs/other")
    metrics = json.loads(Path("runs/other/metrics.json").read_text())
    metrics["task"]["columns"] = [f"{label}x" for label in metrics["task"]["columns"]]
    Path("runs/other/metrics.json").write_text(json.dumps(metrics))
    oof = pd.read_csv("runs/other/oof.csv", dtype=str)
    oof["label"] += "x"
    oof.to_csv("runs/other/oof.csv", index=False)
    with pytest.raises(UserError, match="different classes than tiny"):
        report.main(["runs/tiny", "runs/other"])


# ------------------------------------------------------------------------------------------------ its parts


def test_probabilities_are_compared_with_frequencies() -> None:
    bins = figures.bin_confidence(np.array([0.75] * 8 + [0.55] * 2), np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 0.0]))
    assert [(one.low, one.n, one.accuracy) for one in bins] == [(0.5, 2, 0.5), (0.7, 8, 0.75)]
    assert bins[1].error == pytest.approx((0.75 * 0.25 / 8) ** 0.5)
    assert figures.bin_confidence(np.ones(1), np.ones(1))[0].high == 1


def held_out(task: Task, targets: np.ndarray, predictions: np.ndarray, decoding: Decoding = PLAIN) -> HeldOut:
    names = [f"{row}.jpg" for row in range(len(targets))]
    folds = np.zeros(len(targets), np.int64)
    metric = metric_named({"classes": "accuracy", "labels": "roc_auc", "number": "rmse"}[task.kind], task)
    one = predictions.astype(np.float32)
    return HeldOut(task, metric, names, targets, folds, one, one, decoding, one[None], ["plain"])


def classes_held_out(targets: np.ndarray, probabilities: np.ndarray) -> HeldOut:
    return held_out(class_task([f"c{at}" for at in range(probabilities.shape[1])]), targets, probabilities)


def test_planted_label_errors_are_found() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, 300)
    probabilities = np.eye(3)[truth] * 0.8 + draw.dirichlet([1, 1, 1], 300) * 0.2
    targets = truth.copy()
    planted = draw.choice(300, 12, replace=False)
    targets[planted] = (truth[planted] + 1) % 3
    names = [str(row) for row in range(300)]
    rows, table = label_errors.find_label_errors(class_task(["c0", "c1", "c2"]), names, targets, probabilities)
    assert set(rows) <= set(planted) and len(rows) >= 10  # how many is estimated
    assert table["suggested"].tolist() == [f"c{truth[row]}" for row in rows]


def test_planted_errors_among_several_labels_are_found() -> None:
    draw = np.random.default_rng(0)
    truth = (draw.random((300, 3)) < 0.4).astype(np.float32)
    predictions = (truth * 0.9 + draw.random((300, 3)) * 0.1).astype(np.float32)
    targets = truth.copy()
    planted = draw.choice(300, 8, replace=False)
    targets[planted, 1] = 1 - targets[planted, 1]
    task = Labels(["a", "b", "c"], ["a", "b", "c"])
    rows, table = label_errors.find_label_errors(task, [str(row) for row in range(300)], targets, predictions)
    assert set(rows) <= set(planted) and len(rows) >= 4  # how many is estimated
    assert table["suggested"].tolist() == task.as_texts(truth[rows])


@pytest.mark.parametrize("shown", [(1.0, 0.0), (0.0, 0.0)])
def test_labels_that_all_rows_have_or_none_are_not_judged(shown: tuple[float, float]) -> None:
    draw = np.random.default_rng(0)
    task = Labels(["a", "b", "c"], ["a", "b", "c"])
    targets = np.tile(np.array([*shown, shown[0]], np.float32), (60, 1))
    targets[:30, 2] = 1 - shown[0] if any(shown) else 0
    predictions = draw.random((60, 3)).astype(np.float32)
    rows, table = label_errors.find_label_errors(task, [str(row) for row in range(60)], targets, predictions)
    assert len(rows) == len(table)


class Bright(torch.nn.Module):
    """A network whose first class depends on the brightest place in its map."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.body = torch.nn.AvgPool2d(8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.body(images.float()).mean((1, 2, 3))
        return torch.stack([seen, -seen], 1)


def test_grad_cam_points_to_what_decided() -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0, 8:16, 16:24] = images[1, 24:, :8] = 255
    model = Bright()
    layer = saliency.spatial_layer(model, 32)  # type: ignore[arg-type]
    assert layer is model.body
    maps = saliency.grad_cam(model, layer, images, np.array([0, 0]))  # type: ignore[arg-type]
    assert maps.shape == (2, 32, 32) and maps.min() >= 0 and maps.max() <= 1
    places = [np.unravel_index(one.argmax(), one.shape) for one in maps]
    assert 8 <= places[0][0] < 16 <= places[0][1] < 24
    assert places[1][0] >= 24 and places[1][1] < 8
    against = saliency.grad_cam(model, layer, images, np.array([1, 1]))  # type: ignore[arg-type]
    assert against.max() == 0  # nothing spoke for the second class


@pytest.mark.parametrize(
    ("name", "has_map"),
    [("simple_cnn", True), ("test_resnet", True), ("test_convnext", True), ("test_maxvit", True), ("test_vit", False)],
)
def test_which_networks_have_a_map(name: str, has_map: bool) -> None:
    import timm  # after scenes.environment has prepared torchvision

    if name != "simple_cnn" and not timm.is_model(name):
        pytest.skip(f"this version of timm has no {name}")
    model = Classifier(ModelConfig(name=name), 160, 3)
    layer = saliency.spatial_layer(model, 160)
    assert (layer is not None) == has_map
    if layer:
        maps = saliency.grad_cam(model, layer, np.full((2, 160, 160, 3), 9, np.uint8), np.array([0, 2]))
        assert maps.shape == (2, 160, 160) and np.isfinite(maps).all()


def test_the_pairs_of_a_confusion_matrix_count_both_directions() -> None:
    predicted = np.array([0, 1, 1, 0, 2, 2])
    content = errors.of_classes(classes_held_out(np.array([0, 0, 0, 1, 2, 0]), np.eye(3)[predicted]))
    assert content["pairs"]["rows"] == [["c0 ↔ c1", 3, "75.0%", 2, 1], ["c0 ↔ c2", 1, "25.0%", 1, 0]]
    assert content["cells"] == [[0, 0, 1, 0.25], [0, 1, 2, 0.5], [0, 2, 1, 0.25], [1, 0, 1, 1.0], [2, 2, 1, 1.0]]
    assert content["by_output"]["rows"][0] == ["c0", 4, "0.500", "0.250", "0.333"]


def test_a_thousand_classes_take_little_room() -> None:
    count, rows = 1000, 5000
    targets = np.arange(rows) % count
    held = classes_held_out(targets, np.eye(count)[(targets + (np.arange(rows) < 300)) % count])
    assert len(json.dumps(class_scores(held.predictions, held.targets, held.task.columns))) < 300_000
    content = errors.of_classes(held)
    assert content["is_large"] and len(content["cells"]) < 2000 and content["errors"] == 300
    assert len(content["pairs"]["rows"]) == 100


def test_errors_of_labels_are_counted_under_the_thresholds_in_use() -> None:
    targets = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.float32)
    predictions = np.array([[0.9, 0.1], [0.2, 0.7], [0.2, 0.7], [0.4, 0.1]], np.float32)
    task = Labels(["a", "b"], ["cat", "dog"])
    content = errors.of_labels(held_out(task, targets, predictions, Decoding("labels", [0.3, 0.6])))
    assert content["by_output"]["rows"] == [
        ["cat", 2, "0.625", "0.500", "0.30", 1, 1],
        ["dog", 1, "0.833", "0.667", "0.60", 0, 1],
    ]
    assert content["errors"] == 2
    assert content["together"]["rows"] == [["dog", "added in place of", "cat", 1]]


def test_errors_of_numbers_are_shown_along_the_true_ones() -> None:
    targets = np.arange(40, dtype=np.float32)
    content = errors.of_numbers(held_out(Number.of("age", targets), targets, (targets + 2)[:, None]))
    rows = content["by_size"]["rows"]
    assert sum(row[1] for row in rows) == 40 and all(row[2:] == ["+2", "2"] for row in rows)
    assert "<svg" in content["scatter"] and "<svg" in content["residuals"]
