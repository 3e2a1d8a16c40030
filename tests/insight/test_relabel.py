"""relabel.py: the review sheet, the decisions in it, and what they do and do not change in a run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import relabel
import train
from scenes.competition.experiment import load_experiment
from scenes.competition.rows import read_train
from scenes.competition.task import Number
from scenes.config import Config, DataConfig
from scenes.config_file import load_config
from scenes.console import UserError
from scenes.data.dataset import Dataset, read_dataset
from tiny import TINY, copy_after

pytest.importorskip("cleanlab")
SHEET = Path("runs/tiny/review.csv")


def read(path: Path | str) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def dataset(**data: Any) -> Dataset:
    return read_dataset(Config(name="x", image_size=32, data={"folds": 2, **data}))


def decide(*decisions: str) -> pd.DataFrame:
    """Fills in the first decisions of a sheet; returns it."""
    sheet = read(SHEET)
    assert len(sheet) >= len(decisions)
    sheet.loc[: len(decisions) - 1, "decision"] = decisions
    sheet.to_csv(SHEET, index=False)
    return sheet


@pytest.fixture(scope="module")
def with_sheet(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run with a sheet to review. Read-only."""
    return copy_after(lambda: relabel.main(["runs/tiny"]), trained, tmp_path_factory.mktemp("reviewed"))


@pytest.fixture
def reviewed(with_sheet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `with_sheet` as the current folder."""
    monkeypatch.chdir(shutil.copytree(with_sheet, tmp_path / "reviewed"))
    return Path.cwd()


def test_the_sheet_lists_doubted_rows_worst_first_and_a_page_shows_them(reviewed: Path) -> None:
    sheet = pd.read_csv(SHEET, dtype={"label": str, "suggested": str, "decision": str}, keep_default_na=False)
    assert list(sheet) == ["image_name", "label", "suggested", "probability", "quality", "decision"]
    assert len(sheet) >= 3
    assert (sheet["label"] != sheet["suggested"]).all()
    assert (sheet["decision"] == "").all()
    assert sheet["quality"].is_monotonic_increasing
    truth = read("input/train.csv").set_index("image_name")["label"]
    assert sheet["label"].tolist() == truth[sheet["image_name"]].tolist()
    page = SHEET.with_suffix(".html").read_text()
    assert page.count('<img src="data:image/jpeg') == len(sheet)
    assert "--apply" in page


def test_decisions_become_a_config_that_trains(reviewed: Path) -> None:
    sheet = decide("drop", "keep", read(SHEET)["suggested"][2])
    relabel.main(["runs/tiny", "--apply"])
    config = load_config(Path("configs/tiny_relabelled.yaml"))
    assert config.data.drop == [sheet["image_name"][0]]
    assert config.data.relabel == {sheet["image_name"][2]: sheet["suggested"][2]}
    old = load_config(Path("runs/tiny/config.yaml"))
    assert config.selected_on == ["runs/tiny"]
    assert config.model_copy(update={"name": old.name, "data": old.data, "selected_on": []}) == old
    train.main(["configs/tiny_relabelled.yaml", "--set", "train.epochs=1"])
    assert "runs/tiny" in json.loads(Path("runs/tiny_relabelled/metrics.json").read_text())["optimistic"]
    before, after = read("runs/tiny/oof.csv"), read("runs/tiny_relabelled/oof.csv").set_index("image_name")
    kept = before[before["image_name"] != sheet["image_name"][0]].set_index("image_name")
    assert after.index.tolist() == kept.index.tolist()
    assert after["fold"].tolist() == kept["fold"].tolist()
    assert (after["label"] != kept["label"]).sum() == 1
    assert after["label"][sheet["image_name"][2]] == sheet["suggested"][2]


def test_decisions_add_up_over_two_rounds(reviewed: Path) -> None:
    names = decide("drop", "drop")["image_name"]
    config = Path("runs/tiny/config.yaml")
    config.write_text(config.read_text().replace("drop: []", f"drop: [{names[0]}, 0.jpg]"))
    other = "0" if read(SHEET)["label"][0] != "0" else "1"
    decide(other)
    relabel.main(["runs/tiny", "--apply", "--out", "second.yaml"])
    data = load_config(Path("second.yaml")).data
    assert data.drop == ["0.jpg", names[1]]
    assert data.relabel == {names[0]: other}


def test_all_suggestions_at_once(finished: Path) -> None:
    relabel.main(["runs/tiny", "--accept-all", "--apply"])
    sheet = read(SHEET)
    found = load_config(Path("configs/tiny_relabelled.yaml")).data.relabel
    assert found == dict(zip(sheet["image_name"], sheet["suggested"], strict=True))


def test_what_a_person_wrote_is_kept(reviewed: Path) -> None:
    decide("drop")
    mine = SHEET.read_bytes()
    relabel.main(["runs/tiny", "--apply"])
    relabel.main(["runs/tiny"])
    assert Path("runs/tiny/review.1.csv").read_bytes() == mine
    config = Path("configs/tiny_relabelled.yaml")
    config.write_text("seed: 1\n")
    SHEET.write_bytes(mine)
    relabel.main(["runs/tiny", "--apply"])
    assert Path("configs/tiny_relabelled.1.yaml").read_text() == "seed: 1\n"


def test_a_spreadsheets_floats_and_spaces_are_understood(reviewed: Path) -> None:
    sheet = read(SHEET)
    decide(f" {sheet['suggested'][0]}.0")
    relabel.main(["runs/tiny", "--apply"])
    assert (
        load_config(Path("configs/tiny_relabelled.yaml")).data.relabel[sheet["image_name"][0]] == sheet["suggested"][0]
    )


def test_a_sheet_that_cannot_be_used_is_refused_with_its_rows(reviewed: Path) -> None:
    with pytest.raises(UserError, match="no decision changes a row"):
        relabel.main(["runs/tiny", "--apply"])
    good = decide("drop", "sky")
    with pytest.raises(UserError, match=rf"row 2 \({good['image_name'][1]}\): decision 'sky'"):
        relabel.main(["runs/tiny", "--apply"])
    SHEET.write_text(SHEET.read_text().replace(f"\n{good['image_name'][0]},", "\ngone.jpg,"))
    with pytest.raises(UserError, match=r"2 problems(.|\n)*gone\.jpg\): not an image of input/train\.csv"):
        relabel.main(["runs/tiny", "--apply"])
    SHEET.write_text("image_name,label\na,b\n")
    with pytest.raises(UserError, match="no column decision"):
        relabel.main(["runs/tiny", "--apply"])
    SHEET.unlink()
    with pytest.raises(UserError, match="write it first"):
        relabel.main(["runs/tiny", "--apply"])
    assert not Path("configs").exists()


# ------------------------------------------------------------------------------------- data.drop, data.relabel


def test_no_decision_moves_another_row_to_another_fold(workspace: Path) -> None:
    plain = dataset()
    names = plain.table.names
    target = plain.targets[5]
    other = plain.task.columns[(target + 1) % 6]
    changed = dataset(drop=names[10:14], relabel={names[5]: other, names[90]: "0"})
    kept = [row for row in range(len(names)) if row not in range(10, 14)]
    assert changed.table.names == [names[row] for row in kept]
    np.testing.assert_array_equal(changed.fold_of, plain.fold_of[kept])
    np.testing.assert_array_equal(changed.images.pixel_hashes, plain.images.pixel_hashes[kept])
    np.testing.assert_array_equal(changed.images[20], plain.images[24])
    expected = plain.targets.copy()
    expected[5], expected[90] = plain.task.columns.index(other), 0
    np.testing.assert_array_equal(changed.targets, expected[kept])
    assert changed.task.columns == plain.task.columns


@pytest.mark.parametrize("arguments", [[], ["--apply"]])
def test_a_class_that_is_called_as_a_decision_is_refused(arguments: list[str], reviewed: Path) -> None:
    names = "data.class_names=[drop, b, c, d, e, f]"
    with pytest.raises(UserError, match="a class is called 'drop'"):
        relabel.main(["runs/tiny", *arguments, "--set", names])


def test_a_folder_in_the_way_is_named(reviewed: Path) -> None:
    for arguments, folder in ((["--apply", "--out", "configs"], "configs"), ([], str(SHEET))):
        Path(folder).unlink(missing_ok=True)
        Path(folder).mkdir()
        with pytest.raises(UserError, match=f"{folder}: is a folder"):
            relabel.main(["runs/tiny", *arguments])


def test_a_run_of_all_rows_has_no_labels_to_doubt(workspace: Path) -> None:
    train.main(["tiny.yaml", "--folds", "full", "--set", *TINY, "train.epochs=1"])
    with pytest.raises(UserError, match="--folds full"):
        relabel.main(["runs/tiny"])


@pytest.mark.parametrize("kind", ["labels", "number"])
def test_what_has_no_classes_is_refused_at_once(kind: str, finished: Path) -> None:
    file = Path("runs/tiny/metrics.json")
    metrics = json.loads(file.read_text())
    metrics["task"]["kind"] = kind
    file.write_text(json.dumps(metrics))
    for arguments in ([], ["--apply"], ["--accept-all"]):
        with pytest.raises(UserError, match=r"runs/tiny: .*data\.drop"):
            relabel.main(["runs/tiny", *arguments])


def test_decisions_apply_where_the_images_are_now(reviewed: Path) -> None:
    decide("drop")
    Path("input").rename("elsewhere")
    relabel.main(["runs/tiny", "--apply", "--set", "data.root=elsewhere"])
    assert load_config(Path("configs/tiny_relabelled.yaml")).data.root == Path("elsewhere")


def test_a_dropped_row_needs_no_readable_image(workspace: Path) -> None:
    names = read("input/train.csv")["image_name"].tolist()
    gone, cut, other = names[4], names[9], names[20]
    Path("input/SceneImages", gone).unlink()
    for name in (cut, other):
        path = Path("input/SceneImages", name)
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=f"1 problem\n.*1 row with an unreadable image.*line 22 \\('{other}'\\)"):
        dataset(drop=[gone, cut])
    dropped, skipped = dataset(drop=[gone, cut, other, names[40]]), dataset(on_bad_image="skip")
    kept = [name for name in names if name not in (gone, cut, other)]
    assert skipped.table.names == kept
    kept.remove(names[40])
    assert dropped.table.names == kept
    folds = dict(zip(skipped.table.names, skipped.fold_of.tolist(), strict=True))
    assert dropped.fold_of.tolist() == [folds[name] for name in kept]
    assert [name for name, _ in dropped.skipped] == [gone, cut, other]


def test_a_class_must_not_vanish(workspace: Path) -> None:
    rows = read("input/train.csv")
    with pytest.raises(UserError, match="leaves the class '3' without rows"):
        dataset(drop=rows["image_name"][rows["label"] == "3"].tolist())


def test_a_class_that_never_had_a_row_is_none_that_vanished(workspace: Path) -> None:
    rows = read("input/train.csv")
    for label in "0123456":
        rows[f"is {label}"] = (rows["label"] == label).astype(int)
    rows.drop(columns="label").to_csv("input/train.csv", index=False)
    data = dataset(label_columns=[f"is {label}" for label in "0123456"])
    assert data.task.outputs == 7
    assert data.targets.max() == 5


def test_a_dropped_outlier_leaves_no_mark_on_numbers(workspace: Path) -> None:
    rows = read("input/train.csv")
    rows.loc[3, "label"] = "1000000"
    rows.to_csv("input/train.csv", index=False)
    data = DataConfig(drop=[rows["image_name"][3]], folds=2)
    task = read_dataset(Config(name="x", image_size=48, task="number", data=data)).task
    assert isinstance(task, Number)
    assert (task.low, task.high) == (0, 5)
    assert task.deviation < 3


def test_the_config_counts_over_what_the_competition_says(reviewed: Path) -> None:
    Path("input/competition.yaml").write_text("symmetry: none\n")
    decide("drop")
    relabel.main(["runs/tiny", "--apply"])
    assert load_experiment(Path("configs/tiny_relabelled.yaml"), []).symmetry == "mirror"


def problems(**data: Any) -> str:
    found = read_train(Config(name="x", data=DataConfig(**data)))[2]
    return "; ".join(f"{problem.where}: {problem.what} → {problem.remedy}" for problem in found)


def test_decisions_about_what_is_not_there_name_the_key_and_the_nearest(workspace: Path) -> None:
    first, second = read("input/train.csv")["image_name"][:2]
    assert not problems(drop=[first], relabel={second: "1"})
    near = first.replace(".jpg", ".jpeg")
    assert f"data.drop: not in input/train.csv: '{near}' → did you mean '" in problems(drop=[near])
    assert "data.relabel: not in input/train.csv: 'sea'" in problems(relabel={"sea": "1"})
    assert "data.relabel: unknown label: '9' → labels are 0, 1, 2, 3, 4, 5" in problems(relabel={first: "9"})
    assert f"data.drop: repeated: '{first}'" in problems(drop=[first, first])
    assert "data.relabel: also in data.drop" in problems(drop=[first], relabel={first: "1"})


def test_numbers_in_yaml_are_the_texts_of_the_csv() -> None:
    data = DataConfig(drop=[7, 8.0, "x"], relabel={9: 3, "y": 3.0})
    assert (data.drop, data.relabel) == (["7", "8", "x"], {"9": "3", "y": "3"})


def test_decisions_bind_a_run(workspace: Path) -> None:
    Path("tiny.yaml").write_text("")
    name = read("input/train.csv")["image_name"][0]
    arguments = ["tiny.yaml", "--folds", "0", "--set", *TINY, "train.epochs=1"]
    train.main(arguments)
    with pytest.raises(UserError, match=r"data\.drop"):
        train.main([*arguments, f"data.drop=[{name}]"])
