"""check.py end to end: what is planted in a tiny competition is found; invalid data is reported but not fatal."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import save_file

import check
from scenes.config_file import load_config
from scenes.console import UserError
from scenes.insight.quality import deviations, read_header, sharpness
from scenes.insight.shift import adversarial_validation
from scenes.randomness import seed_all
from tiny import TINY

PLAIN = ["tiny.yaml", "--set", *TINY]
IMAGES = Path("input/SceneImages")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny body, as if pretrained."""
    from scenes.config import ModelConfig
    from scenes.model.backbone import create_body

    seed_all(0)
    file = tmp_path_factory.mktemp("weights") / "body.safetensors"
    save_file(create_body(ModelConfig(name="test_efficientnet"), 32).state_dict(), file)
    return file


def run(capsys: pytest.CaptureFixture[str], *settings: str) -> tuple[str, str]:
    """Runs check.py; returns its output and the page."""
    capsys.readouterr()
    check.main([*PLAIN, *settings])
    return capsys.readouterr().out, Path("check.html").read_text()


def rows(file: str) -> pd.DataFrame:
    return pd.read_csv(f"input/{file}", dtype=str)


def read(name: str) -> np.ndarray:
    return cv2.imread(str(IMAGES / name))


def replace(name: str, image: np.ndarray) -> None:
    cv2.imwrite(str(IMAGES / name), image, [cv2.IMWRITE_JPEG_QUALITY, 70])


def test_a_sound_competition_without_pretrained_weights(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, page = run(capsys, "data.class_names=[buildings, forest, glacier, mountain, sea, street]")
    assert "96 training images in 6 classes, 16 a class" in printed
    assert "24 test images" in printed
    assert "48 × 48; mode RGB; format JPEG" in printed
    assert "identical images, pairs: none" in printed
    for text in (printed, page):
        assert "there are no pretrained weights (model.weights: none)" in text
    assert not re.search(r"\bAUC\b", printed + re.sub(r"data:[^\"]*", "", page))
    for name in ("buildings", "forest", "glacier", "mountain", "sea", "street"):
        assert f"<h3>{name}</h3>" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert page.count('class="strip"') == 6
    assert len(printed.splitlines()) <= 20


def test_what_is_planted_is_found_and_the_remedy_works(
    workspace: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = rows("train.csv"), rows("test.csv")
    names = train["image_name"]
    zero, one = (train.index[train["label"] == label] for label in "01")
    shutil.copy(IMAGES / names[zero[0]], IMAGES / names[one[0]])  # one image, two labels
    replace(names[zero[2]], read(names[zero[1]]))  # the same image, encoded again
    replace(test["image_name"][3], read(names[zero[3]]))
    printed, page = run(capsys, f"model.weights={weights}")
    assert "identical images, pairs: 1 within train, 0 train and test, 0 within test" in printed
    assert re.search(r"different labels: \d", printed)
    assert "Conflicting labels" in page
    assert f"{names[zero[0]]} | {names[one[0]]}" in page
    assert re.search(rf"{names[zero[3]]} \| {test['image_name'][3]}", page)
    groups = pd.read_csv("near_duplicates.csv", dtype=str).set_index("image_name")["group"]
    assert groups[names[zero[1]]] == groups[names[zero[2]]] != groups[names[zero[0]]]
    assert groups[names[zero[0]]] == groups[names[one[0]]]
    assert test["image_name"][3] not in groups
    assert groups.value_counts().min() >= 2

    from scenes.data.dataset import read_dataset

    remedy = re.search(r"--set (data\.near_duplicates=\S+)", printed)
    assert remedy
    for seed in range(3):
        data = read_dataset(load_config(Path("tiny.yaml"), [*TINY, remedy[1], f"data.fold_seed={seed}"]))
        fold = dict(zip(data.table.names, data.fold_of.tolist(), strict=True))
        assert all(len({fold[name] for name in group.index}) == 1 for _, group in groups.groupby(groups))


def test_decisions_about_rows_are_followed(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = rows("train.csv")
    names = train["image_name"]
    zero, one, two = (train.index[train["label"] == label][0] for label in "012")
    for row in (one, two):
        shutil.copy(IMAGES / names[zero], IMAGES / names[row])
    assert "different labels: 2" in run(capsys)[0]
    printed, _ = run(capsys, f"data.relabel={{{names[one]}: '0', {names[4]}: nothing}}", f"data.drop=[{names[two]}]")
    assert "data.relabel: unknown label: 'nothing'" in printed
    assert "95 training images" in printed
    assert "identical images, pairs: 1 within train" in printed
    assert "different labels: none" in printed


def test_bad_data_is_reported_and_the_rest_looked_at(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = Path("input/train.csv")
    lines = csv.read_text().splitlines()
    gone, damaged = (lines[row].split(",")[0] for row in (3, 4))
    (IMAGES / gone).unlink()
    (IMAGES / damaged).write_bytes((IMAGES / damaged).read_bytes()[:300])
    shutil.copy(IMAGES / lines[1].split(",")[0], "secret.jpg")
    lines[5] = lines[5].split(",")[0] + ","
    lines[6] = "../../secret.jpg,1"
    lines += [lines[1], "a\0b.jpg,2", " ,3"]
    csv.write_text("\n".join(lines))
    unknown = rows("test.csv")["image_name"][0]
    (IMAGES / unknown).write_bytes(b"")
    printed, page = run(capsys)
    assert "92 training images" in printed
    assert "23 test images" in printed
    wrong = ((6, "empty label"), (7, "leaves"), (98, "duplicate image name"), (99, "leaves"), (100, "empty image name"))
    for line, what in wrong:
        assert re.search(rf"{what}.*line {line}\b", printed), what
    assert f"2 images cannot be read: line 4 ({gone}: no such file), line 5 ({damaged}: cut off" in printed
    assert "--set data.on_bad_image=skip" in printed
    assert f"line 2 ({unknown}: empty file)" in printed
    assert "--set infer.on_bad_image=prior" in printed
    assert gone in page
    assert "secret.jpg" not in page.partition("<nav")[2]


def test_images_that_need_a_range_are_told_from_bad_ones(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in zip(rows("train.csv")["image_name"][:2], (10, 900), strict=True):
        Image.fromarray(np.full((48, 48), value, np.int32)).save(IMAGES / name, "TIFF")
    printed, _ = run(capsys)
    assert "data.pixel_range: [10, 900]" in printed
    assert "cannot be read" not in printed


def test_the_images_may_lie_beside_the_csv(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in IMAGES.iterdir():
        file.rename(Path("input") / file.name)
    shutil.copy("tiny.yaml", "input")
    monkeypatch.chdir("input")
    check.main([*PLAIN, "data.root=.", "data.image_dir=."])
    assert Path("check.html").exists()


def test_without_test_images(workspace: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("test.csv", "sample_submission.csv"):  # which also names the test rows
        Path("input", name).unlink(missing_ok=True)
    printed, page = run(capsys, f"model.weights={weights}")
    assert "no test images" in printed
    assert "there are no test images" in page
    Path("input/test.csv").write_bytes(b"\xff\xfe")
    assert "test.csv: cannot be used" in run(capsys)[0]


def test_images_in_a_folder_for_each_class(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, label in rows("train.csv").itertuples(index=False):
        Path("input/train", label).mkdir(parents=True, exist_ok=True)
        shutil.move(IMAGES / name, Path("input/train", label, name))
    for file in ("train.csv", "test.csv", "sample_submission.csv"):
        Path("input", file).unlink()
    IMAGES.rename("input/test")
    printed, _ = run(capsys, "data.train_csv=train/{label}/{image_name}", "data.test_csv=test/{image_name}")
    assert "96 training images in 6 classes, 16 a class" in printed
    assert "24 test images" in printed


def test_a_shift_is_seen_and_shown(workspace: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in rows("test.csv")["image_name"]:
        replace(name, read(name) // 4)
    printed, page = run(capsys, f"model.weights={weights}")
    auc = re.search(r"AUC (\d\.\d+) ± ", printed)
    assert auc
    assert float(auc[1]) > 0.8
    assert "do not trust" in printed
    assert "Training images most like test images" in page
    assert "Test images least like training images" in page


def test_weights_that_cannot_be_had_do_not_stop_it(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed, _ = run(capsys, "model.weights=gone.safetensors")
    assert re.search(r"not compared: .*gone\.safetensors", printed)


def test_only_its_own_page_is_overwritten(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, first = run(capsys)
    assert run(capsys)[1] == first
    Path("mine.html").write_text("mine")
    for out, says in (("input", "is a folder"), ("mine.html/x", "is a file")):
        with pytest.raises(UserError, match=says):
            check.main([*PLAIN, "--out", out])
    check.main([*PLAIN, "--out", "mine.html"])
    assert Path("mine.1.html").read_text() == "mine"
    assert not Path("check.1.html").exists()
    check.main([*PLAIN, "--out", "pages/tiny.html"])
    assert Path("pages/tiny.html").read_text() == first


def test_groups_edited_by_hand_are_kept(workspace: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = rows("train.csv")["image_name"]
    replace(names[1], read(names[0]))
    Path("near_duplicates.csv").write_text("mine")
    printed, _ = run(capsys, f"model.weights={weights}")
    assert "it is now near_duplicates.1.csv" in printed
    assert Path("near_duplicates.1.csv").read_text() == "mine"


def test_nothing_is_done_for_a_wrong_config_or_unreadable_images(workspace: Path) -> None:
    with pytest.raises(UserError, match="no transform 'Flipp'"):
        check.main([*PLAIN, "augment=[Flipp]"])
    for file in IMAGES.iterdir():
        Image.fromarray(np.full((48, 48), 900, np.int32)).save(file, "TIFF")
    with pytest.raises(UserError, match=r"data\.pixel_range: \[900, 900\]"):
        check.main(PLAIN)
    shutil.rmtree(IMAGES)
    with pytest.raises(UserError, match="no row has an image that can be read"):
        check.main(PLAIN)
    assert not Path("check.html").exists()


# ----------------------------------------------------------------------------------------------------- its parts


@pytest.mark.parametrize(("distance", "low", "high"), [(0.0, 0.35, 0.6), (1.0, 0.9, 1.0)])
def test_the_auc_tells_whether_train_and_test_differ(distance: float, low: float, high: float) -> None:
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(300, 8)), generator.normal(size=(200, 8)) + distance
    train[:5] += 3 * distance  # these are the most test-like
    shift = adversarial_validation(train.astype(np.float32), test.astype(np.float32), 0)
    assert shift
    assert low <= shift.auc <= high
    assert sorted(shift.rows) == list(range(500))
    if distance:
        of_train = shift.rows < 300
        assert set(shift.rows[of_train][np.argsort(-shift.likeness[of_train])[:5]]) == set(range(5))
        assert "differ clearly" in shift.verdict
    else:
        assert "look alike" in shift.verdict
    assert adversarial_validation(train[:10], test, 0) is None


def test_outliers_are_far_from_the_median_and_equal_values_have_none() -> None:
    far = deviations(np.array([10.0, 11, 9, 10, 12, 8, 100]))
    assert np.flatnonzero(np.abs(far) > 3.5).tolist() == [6]
    assert deviations(np.array([5.0, 5, 5, 5, 7])).tolist() == [0] * 5


def test_blur_lowers_sharpness_at_any_size() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    assert sharpness(cv2.GaussianBlur(image, (9, 9), 3), 48) < sharpness(image, 48) / 5


def test_a_header_is_read_whatever_the_name_says(tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "x.jpg"
    Image.new("P", (30, 20)).save(file, "PNG")
    assert read_header(file) == ("30 × 20", "palette", "PNG")
    file.write_bytes(b"text")
    assert read_header(file) == ("unknown", "unknown", "unknown")
