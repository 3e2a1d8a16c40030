from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scenes.competition.sample import CLASS_NAMES, _labels, _split, draw
from scenes.console import UserError


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in ("one", 3), ("two", 3), ("three", 4):
        draw(tmp_path / name, 13, 8, seed)
    one, two, three = (files(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert set(one) == set(three)
    assert not [name for name in one if name.endswith(".jpg") and one[name] == three[name]]


def test_a_drawing_does_not_depend_on_the_row_counts(tmp_path: Path) -> None:
    draw(tmp_path / "few", 9, 4)
    draw(tmp_path / "more", 12, 6)
    few, more = files(tmp_path / "few" / "SceneImages"), files(tmp_path / "more" / "SceneImages")
    assert len(few) == 13
    assert all(more[name] == few[name] for name in few)


def test_the_files_have_the_form_of_the_competition(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "input"
    root.mkdir(parents=True)  # an empty folder may exist already
    draw(root, 31, 17)
    assert {path.name for path in root.parent.iterdir()} == {"input"}  # nothing unfinished is left behind
    tables = {path.stem: pd.read_csv(path) for path in root.glob("*.csv")}
    train, test, empty, answers = (tables[name] for name in ("train", "test", "sample_submission", "test_labels"))
    assert [len(table) for table in (train, test, empty, answers)] == [31, 17, 17, 17]
    assert list(test.columns) == ["image_name"]
    assert list(train.columns) == list(empty.columns) == list(answers.columns) == ["image_name", "label"]
    assert list(test.image_name) == list(empty.image_name) == list(answers.image_name)
    assert set(empty.label) == {0}
    images = sorted((root / "SceneImages").iterdir())
    assert {path.name for path in images} == {*train.image_name, *test.image_name} == {f"{i}.jpg" for i in range(48)}
    assert len({path.read_bytes() for path in images}) == 48
    for path in images:
        assert path.read_bytes()[:3] == b"\xff\xd8\xff"
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert image is not None and image.shape == (150, 150, 3)


@pytest.mark.parametrize("train_rows", [0, 1, 30, 31, 34, 35])
@pytest.mark.parametrize("test_rows", [0, 1, 12, 14, 15, 17])
def test_both_parts_are_balanced_within_one(train_rows: int, test_rows: int) -> None:
    labels = _labels(0, train_rows + test_rows)
    train, test = _split(labels, test_rows, np.random.default_rng(0))
    assert sorted([*train, *test]) == list(range(train_rows + test_rows))
    for part, rows in (train, train_rows), (test, test_rows):
        counts = np.bincount(labels[part], minlength=len(CLASS_NAMES))
        assert counts.sum() == rows
        assert np.ptp(counts) <= 1


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("mine")
    draw(tmp_path, 6, 6)
    assert files(tmp_path) == {"train.csv": b"mine"}
    (tmp_path / "train.csv").rename(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="holds files but no train"):
        draw(tmp_path, 6, 6)
    assert files(tmp_path) == {"notes.txt": b"mine"}


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scenes.competition.sample.ProcessPoolExecutor.map", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "sample", 6, 6)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_raw_pixels_do_not_give_the_class_away(tmp_path: Path) -> None:
    draw(tmp_path / "sample", 180, 90, size=75)
    pixels, labels = [], []
    for name in "train", "test_labels":
        table = pd.read_csv(tmp_path / "sample" / f"{name}.csv")
        images = [cv2.imread(str(tmp_path / "sample" / "SceneImages" / image)) for image in table.image_name]
        pixels.append(np.stack([cv2.resize(image, (20, 20), interpolation=cv2.INTER_AREA).ravel() for image in images]))
        labels.append(table.label)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=60)).fit(pixels[0], labels[0])
    assert 1 / 6 < linear.score(pixels[1], labels[1]) < 0.75
