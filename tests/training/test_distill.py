"""Soft targets: distill.py writes them, a student trains on them, invalid ones are refused."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import distill
import train
from scenes.config_file import load_config
from scenes.console import UserError
from scenes.data.dataset import read_dataset
from tiny import TINY, copy_after

SOFT = Path("runs/tiny/soft_targets.csv")
STUDENT = ["name=student", "data.soft_targets=../runs/tiny/soft_targets.csv"]


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"image_name": str})


def fit(*settings: str) -> None:
    train.main(["tiny.yaml", "--folds", "0", "--set", *TINY, "train.epochs=1", *settings])


@pytest.fixture(scope="module")
def with_targets(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run with its soft targets. Read-only."""
    return copy_after(lambda: distill.main(["runs/tiny"]), trained, tmp_path_factory.mktemp("taught"))


@pytest.fixture
def taught(with_targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `with_targets` as the current folder."""
    monkeypatch.chdir(shutil.copytree(with_targets, tmp_path / "taught"))
    return Path.cwd()


def test_each_fold_is_taught_by_models_that_never_saw_its_rows(taught: Path) -> None:
    soft = read(SOFT)
    folds = pd.read_csv("runs/tiny/folds.csv", dtype={"image_name": str, "label": str}).set_index("image_name")
    test = set(pd.read_csv("input/test.csv", dtype=str)["image_name"])
    classes = [str(number) for number in range(6)]
    for fold, rows in soft.groupby("fold"):
        assert set(rows["image_name"]) == set(folds.index[folds["fold"] != fold]) | test
        assert not rows["image_name"].duplicated().any()
    np.testing.assert_allclose(soft[classes].sum(axis=1), 1, atol=1e-5)
    in_train = soft[~soft["image_name"].isin(test)]
    labels = folds.loc[in_train["image_name"], "label"].astype(int).to_numpy()
    own = in_train[classes].to_numpy()[np.arange(len(in_train)), labels]
    assert own.min() >= 0.5  # half of the target is the label
    # The teachers differ between folds, so their predictions for the same test image do too.
    by_fold = [soft[(soft["fold"] == fold) & soft["image_name"].isin(test)][classes].to_numpy() for fold in (0, 1)]
    assert np.abs(by_fold[0] - by_fold[1]).max() > 1e-3


def test_a_student_trains_on_them_and_on_the_test_images(taught: Path) -> None:
    data = read_dataset(load_config(Path("tiny.yaml"), [*TINY, *STUDENT]))
    rows = data.training_rows(0)
    targets = dict(zip(rows, data.training_outputs(0, rows), strict=True))
    held = data.rows(0)[1]
    assert len(rows) == 48 + 24
    assert not set(rows) & set(held)
    soft = read(SOFT).query("fold == 0").set_index("image_name")
    for row in rows[[0, 20, 47, 48, 71]]:
        name = [*data.table.names, *pd.read_csv("input/test.csv", dtype=str)["image_name"]][row]
        np.testing.assert_allclose(targets[row], soft.loc[name].to_numpy()[1:].astype(float), atol=1e-6)
        assert data.training_images[row].shape == (48, 48, 3)
    fit(*STUDENT)
    fit("name=alone")
    student, alone = (pd.read_csv(f"runs/{name}/oof.csv").iloc[:, 3:].to_numpy() for name in ("student", "alone"))
    assert np.abs(student - alone).max() > 1e-4
    history = pd.read_csv("runs/student/fold0/history.csv")
    assert history["steps"].sum() == -(-72 // 16)  # test images make an epoch longer


def test_hard_targets_in_the_file_train_as_labels_do(taught: Path) -> None:
    soft = read(SOFT)
    labels = pd.read_csv("input/train.csv", dtype=str).set_index("image_name")["label"]
    soft = soft[soft["image_name"].isin(labels.index)]
    soft.iloc[:, 2:] = np.eye(6)[labels[soft["image_name"]].astype(int)]
    soft.to_csv(SOFT, index=False)
    fit(*STUDENT)
    fit("name=alone")
    student, alone = (pd.read_csv(f"runs/{name}/oof.csv").iloc[:, 3:].to_numpy() for name in ("student", "alone"))
    np.testing.assert_allclose(student, alone, atol=1e-4)


def test_rows_that_are_left_out_may_be_in_the_file(taught: Path) -> None:
    name = pd.read_csv("input/train.csv", dtype=str)["image_name"][0]
    fit(*STUDENT, f"data.drop=[{name}]", "train.epochs=1")
    assert name not in Path("runs/student/oof.csv").read_text()


def test_a_label_that_a_person_corrected_counts_over_soft_targets(taught: Path) -> None:
    name = read(SOFT).query("fold == 0")["image_name"].iloc[0]
    data = read_dataset(load_config(Path("tiny.yaml"), [*TINY, *STUDENT, f'data.relabel={{"{name}": "5"}}']))
    row = data.table.names.index(name)
    np.testing.assert_array_equal(data.training_outputs(0, np.array([row]))[0], np.eye(6)[5])


def leak(soft: pd.DataFrame) -> pd.DataFrame:
    """Gives fold 0 the soft targets made for fold 1."""
    return soft.assign(fold=1 - soft["fold"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (leak, "rows it holds out"),
        (lambda soft: pd.concat([soft, soft.iloc[:3]]), "repeat an image and fold"),
        (lambda soft: soft.assign(fold=7), "a fold that no training row has"),
        (lambda soft: soft.query("fold == 0"), "no row for fold 1"),
        (lambda soft: soft.drop(columns="3"), r"no column '3'.*distill\.py"),
        (lambda soft: soft.assign(image_name="x.jpg"), "in neither CSV"),
        (lambda soft: soft.assign(**{"0": 0.7}), "do not sum to 1"),
        (lambda soft: soft.assign(**{"0": "much"}), "do not sum to 1"),
        (lambda soft: soft.assign(**{"0": np.nan}), "do not sum to 1"),
        (lambda soft: soft.assign(**{"0": soft["0"] - 2, "1": soft["1"] + 2}), "do not sum to 1"),
    ],
)
def test_soft_targets_that_are_wrong_are_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame], says: str, taught: Path
) -> None:
    change(read(SOFT)).to_csv(SOFT, index=False)
    with pytest.raises(UserError, match=says):
        fit(*STUDENT)
    assert not Path("runs/student").exists()


@pytest.mark.parametrize("settings", [["data.soft_targets=none.csv"], [*STUDENT, "train.trainable_stages=0"]])
def test_soft_targets_that_cannot_be_used_are_refused(settings: list[str], taught: Path) -> None:
    with pytest.raises(UserError, match="soft_targets"):
        fit(*settings)


def test_a_folder_is_no_place_for_soft_targets(finished: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        distill.main(["runs/tiny", "--out", "runs/tiny"])
    assert Path("runs/tiny/metrics.json").exists()


def test_the_order_of_teachers_of_different_sizes_changes_nothing(finished: Path) -> None:
    train.main(["tiny.yaml", "--set", *TINY, "name=small", "image_size=16", "train.epochs=1"])
    distill.main(["runs/small", "runs/tiny", "--out", "a.csv"])
    distill.main(["runs/tiny", "runs/small", "--out", "b.csv"])
    pd.testing.assert_frame_equal(read(Path("a.csv")), read(Path("b.csv")), atol=1e-6)


def test_a_name_of_two_images_is_refused(finished: Path) -> None:
    name = pd.read_csv("input/train.csv", dtype=str)["image_name"][0]
    shutil.copytree("input/SceneImages", "input/test")
    for file in ("test.csv", "sample_submission.csv"):
        rows = pd.read_csv(f"input/{file}", dtype=str)
        rows.loc[0, "image_name"] = name
        rows.to_csv(f"input/{file}", index=False)
    config = Path("runs/tiny/config.yaml")
    config.write_text(config.read_text().replace("test_image_dir: null", "test_image_dir: test"))
    with pytest.raises(UserError, match=rf"1 ids name several images.*{name}"):
        distill.main(["runs/tiny"])


def test_a_damaged_test_image_is_named(finished: Path) -> None:
    config = Path("runs/tiny/config.yaml")
    config.write_text(re.sub(r"(?s)(infer:.*?on_bad_image:) error", r"\1 prior", config.read_text()))
    name = pd.read_csv("input/test.csv", dtype=str)["image_name"][0]
    Path("input/SceneImages", name).write_bytes(b"no image")
    with pytest.raises(UserError, match=name):
        distill.main(["runs/tiny"])


def test_a_teacher_needs_all_folds_and_the_same_rows(finished: Path) -> None:
    file = Path("runs/tiny/fold1/weights.safetensors")
    moved = file.rename("elsewhere")
    with pytest.raises(UserError, match=r"fold1 not trained; a teacher needs all folds"):
        distill.main(["runs/tiny"])
    moved.rename(file)
    rows = Path("input/train.csv").read_text().splitlines()
    Path("input/train.csv").write_text("\n".join([*rows[:-1], ""]))
    with pytest.raises(UserError, match="training data changed"):
        distill.main(["runs/tiny"])


def test_other_soft_targets_under_a_run_are_refused(taught: Path) -> None:
    fit(*STUDENT)
    content = SOFT.read_bytes()
    soft = read(SOFT)
    soft.iloc[:, 2:] = 1 / 6
    soft.to_csv(SOFT, index=False)
    with pytest.raises(UserError, match=r"soft_targets\.csv .*runs/student"):
        fit(*STUDENT)
    SOFT.write_bytes(content)
    fit(*STUDENT)  # unchanged: resumes
