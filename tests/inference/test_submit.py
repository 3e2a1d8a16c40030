"""A submission has each test row once, in order, with a label seen in training, or it is not written."""

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenes.competition.task import class_task
from scenes.config import Config, DataConfig, InferConfig, ModelConfig
from scenes.console import UserError
from scenes.inference import submit as submission
from scenes.inference.predict import predict
from scenes.inference.views import VIEWS
from scenes.model.backbone import Classifier
from scenes.model.weights import load_classifier, save_classifier
from scenes.runs import Run

SIZE = 32
CLASSES = ["0", "01", "sea, calm"]
NAMES = ["b.png", "a.png", "10.png", "9.png", "c.png", "d.png", "é.png"]


def config(**data: Any) -> Config:
    return Config(
        name="t",
        image_size=SIZE,
        data=DataConfig(**({"cache": Path("cache")} | data)),
        model=ModelConfig(name="test_efficientnet", weights="none"),
        infer=InferConfig(tta="hflip", batch_size=3, precision="fp32"),
    )


def write(path: str, rows: Sequence[Sequence[str]]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, strict=True))


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def competition() -> None:
    """Seven test images and test.csv."""
    generator = np.random.default_rng(0)
    Path("input/SceneImages").mkdir(parents=True)
    for name in NAMES:
        done, data = cv2.imencode(".png", generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8))
        assert done
        Path("input/SceneImages", name).write_bytes(data.tobytes())
    write("input/test.csv", [["image_name"], *([name] for name in NAMES)])


def train(folds: int = 2, classes: Sequence[str] = CLASSES) -> Run:
    """A run whose folds differ and assign classes to images of noise."""
    run = Run(Path("runs/t"))
    for fold in range(folds):
        torch.manual_seed(fold)
        model = Classifier(config().model, SIZE, len(classes)).eval()
        with torch.no_grad():
            noise = torch.randint(0, 256, (16, 3, SIZE, SIZE), dtype=torch.uint8)
            model.head[-1].weight.normal_()
            model.head[-1].weight /= model(noise).std(0).mean()
            model.head[-1].bias -= model(noise).mean(0)
        save_classifier(model, run.weights_file(fold), class_task(classes), "t")
    return run


# ---------------------------------------------------------------------------------------------- end to end


@pytest.mark.usefixtures("competition")
def test_the_mean_over_folds_and_views_is_submitted() -> None:
    run = train()
    out = submission.submit(run, config(), [0, 1])
    assert out == Path("submissions/t.csv")
    images = [cv2.imread(f"input/SceneImages/{name}")[..., ::-1] for name in NAMES]
    models = [load_classifier(run.weights_file(fold), config()) for fold in (0, 1)]
    each = predict(models, images, np.arange(7), VIEWS["hflip"], SIZE, 7, torch.device("cpu"))  # type: ignore[arg-type]
    mean = each.mean((0, 1))
    labels = [CLASSES[best] for best in mean.argmax(1)]
    assert len(set(labels)) > 1
    assert read(out) == [["image_name", "label"], *([name, label] for name, label in zip(NAMES, labels, strict=True))]
    table = pd.read_csv("submissions/t_probabilities.csv")
    assert list(table) == ["image_name", *CLASSES]
    assert table.image_name.tolist() == NAMES
    np.testing.assert_allclose(table[CLASSES].to_numpy(), mean, atol=1e-5)
    np.testing.assert_allclose(table[CLASSES].sum(axis=1), 1, atol=1e-5)
    alone = read(submission.submit(run, config(), [1], Path("elsewhere/one.csv")))
    assert [row[1] for row in alone[1:]] == [CLASSES[best] for best in each[1].mean(0).argmax(1)]
    assert Path("elsewhere/one_probabilities.csv").exists()


@pytest.mark.usefixtures("competition")
def test_an_older_submission_of_other_content_is_kept() -> None:
    run = train()
    out = submission.submit(run, config(), [0, 1])
    first = out.read_bytes()
    submission.submit(run, config(), [0, 1])
    assert sorted(path.name for path in out.parent.iterdir()) == ["t.csv", "t_probabilities.csv"]
    submission.submit(run, config(), [0])
    names = ["t.1.csv", "t.csv", "t_probabilities.1.csv", "t_probabilities.csv"]
    assert sorted(path.name for path in out.parent.iterdir()) == names
    assert Path("submissions/t.1.csv").read_bytes() == first
    assert out.read_bytes() != first
    submission.submit(run, config(), [1])
    assert Path("submissions/t.1.csv").read_bytes() == first
    assert Path("submissions/t.2.csv").exists()


@pytest.mark.usefixtures("competition")
def test_folds_trained_on_other_classes_are_not_averaged() -> None:
    run = train()
    model = Classifier(config().model, SIZE, 3)
    save_classifier(model, run.weights_file(1), class_task(CLASSES[::-1]), "t")
    with pytest.raises(UserError, match="fold1 was trained on different classes than fold0"):
        submission.submit(run, config(), [0, 1])
    assert not Path("submissions").exists()


@pytest.mark.usefixtures("competition")
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda: Path("input/SceneImages/9.png").write_bytes(b"\x89PNG\r\n"), r"unreadable image.*9\.png"),
        (lambda: Path("input/SceneImages/9.png").unlink(), r"9\.png"),
        (lambda: write("input/test.csv", [["image_name"], ["a.png"], ["a.png"]]), "a.png"),
        (lambda: write("input/sample_submission.csv", [["image_name", "label"], ["a.png", "0"]]), "lacks 6 ids"),
        (lambda: write("input/sample_submission.csv", [["image_name", "a", "b"], ["a.png", "", ""]]), "'a', 'b'"),
        (lambda: Path("input/sample_submission.csv").touch(), "sample_submission.csv: empty"),
        (lambda: Path("input/sample_submission.csv").write_bytes(b"\xff\xfe\x00,b\n"), "not UTF-8"),
    ],
)
def test_bad_files_are_found_before_anything_is_predicted(
    damage: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(1)
    damage()
    monkeypatch.setattr(submission, "predict_folds", lambda *_: pytest.fail("predicted"))
    with pytest.raises(UserError, match=rf"(?s){says}"):
        submission.submit(run, config(), [0])
    assert not Path("submissions").exists()


@pytest.mark.usefixtures("competition")
def test_the_sample_submission_gives_the_header() -> None:
    rows = [["Id", "Category"], *([name, "0"] for name in sorted(NAMES))]
    write("input/sample_submission.csv", rows)
    Path("input/sample_submission.csv").write_bytes(b"\xef\xbb\xbf" + Path("input/sample_submission.csv").read_bytes())
    made = read(submission.submit(train(1), config(), [0]))
    assert made[0] == ["Id", "Category"]
    assert [row[0] for row in made[1:]] == sorted(NAMES)  # in the sample's order


@pytest.mark.usefixtures("competition")
def test_own_column_names_are_used_without_a_sample() -> None:
    write("input/test.csv", [["picture", "extra"], *([name, "x"] for name in NAMES)])
    made = read(submission.submit(train(1), config(image_column="picture", label_column="kind"), [0]))
    assert made[0] == ["picture", "kind"]
    assert [row[0] for row in made[1:]] == NAMES


# ------------------------------------------------------------------------------------------------- round trip

WORDS = st.text(st.sampled_from("aB7é森 ,;\"'#.-_%\n=+@"), min_size=1, max_size=12)
FILES = WORDS.filter(lambda name: name == name.strip() and name not in (".", ".."))


@settings(derandomize=True, max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(FILES, min_size=1, max_size=8, unique=True),
    st.lists(WORDS, min_size=2, max_size=5, unique=True),
    st.integers(0, 99),
)
def test_names_and_labels_survive(
    monkeypatch: pytest.MonkeyPatch, names: list[str], classes: list[str], seed: int
) -> None:
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(len(classes)), len(names)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(submission, "read_images", lambda *_: (object(), []))
        patch.setattr(submission, "run_task", lambda *_: class_task(classes))
        patch.setattr(submission, "predict_folds", lambda *_: probabilities)
        write("input/test.csv", [["image_name", "x"], *([name, ""] for name in names)])
        Path("input/SceneImages").mkdir()
        for name in names:
            Path("input/SceneImages", name).touch()
        made = read(submission.submit(Run(Path("runs/t")), config(), [0]))
    assert [row[0] for row in made[1:]] == names
    assert [row[1] for row in made[1:]] == [classes[best] for best in probabilities.argmax(1)]
