"""A competition is described from its files; what they do not show is said."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prepare
from scenes import plain_yaml
from scenes.competition.detect import detect
from scenes.competition.experiment import load_experiment
from scenes.competition.rows import read_test, read_train_rows
from scenes.competition.submission import check_submission_form
from scenes.competition.task import class_task
from scenes.console import UserError
from small import images, table

COUNT = range(20)
CONFIG = Path(__file__).parents[2] / "configs/effnet_lite0.yaml"
TRAIN = [f"t{i}" for i in COUNT]
TEST = [f"x{i}" for i in COUNT]


def one_column(root: Path, labels: list[object], guess: object, label: str = "kind") -> None:
    """Writes a CSV with one label column, and a matching sample."""
    images(root, *(f"train/{name}.png" for name in TRAIN), *(f"test/{name}.png" for name in TEST))
    table(root / "train.csv", ["id", label], zip(TRAIN, labels, strict=True))
    table(root / "sample_submission.csv", ["id", label], [(name, guess) for name in TEST])


def cycle(*values: object) -> list[object]:
    return [values[i % len(values)] for i in COUNT]


def coco(root: Path) -> None:
    """Writes annotations for training, and a bare list for test."""
    images(root, *(f"train/a/{name}.jpg" for name in TRAIN), *(f"test/b/{name}.jpg" for name in TEST))
    listed = [{"id": i, "file_name": f"a/{name}.jpg", "location": i % 6} for i, name in enumerate(TRAIN)]
    labels = [{"image_id": i, "category_id": i % 4} for i in COUNT]
    (root / "train.json").write_text(json.dumps({"images": listed, "annotations": labels}))
    (root / "test.json").write_text(
        json.dumps([{"id": i, "file_name": f"b/{name}.jpg"} for i, name in enumerate(TEST)])
    )
    table(root / "a_sample_submission_x.csv", ["Id", "Predicted"], [(i, 0) for i in COUNT])


def folders(root: Path) -> None:
    images(
        root, *(f"train/{'ab'[i % 2]} c/{name}.png" for i, name in enumerate(TRAIN)), *(f"test/{n}.png" for n in TEST)
    )


def nested_folders(root: Path) -> None:
    images(root, *(f"seg_train/seg_train/{'ab'[i % 2]}/{name}.png" for i, name in enumerate(TRAIN)))
    images(root, *(f"seg_test/seg_test/{'ab'[i % 2]}/{name}.png" for i, name in enumerate(TEST)))


def names(root: Path) -> None:
    images(root, *(f"train/{'cd'[i % 2]}at.{i}.jpg" for i in COUNT), *(f"test/{name}.jpg" for name in TEST))
    table(root / "sample_submission.csv", ["id", "label"], [(name, 0.5) for name in TEST])


def class_columns(root: Path) -> None:
    one_column(root, cycle("a", "b", "c"), "a")
    table(root / "sample_submission.csv", ["id", "a", "b", "c"], [(name, 0.3, 0.3, 0.4) for name in TEST])


def inner_folders(root: Path) -> None:
    images(root, *(f"train/{'ab'[i % 2]}/images/{name}.png" for i, name in enumerate(TRAIN)))
    images(root, *(f"test/images/{name}.png" for name in TEST))


def one_hot_alone(root: Path) -> None:
    flags(root, 1)
    (root / "sample_submission.csv").unlink()


def two_stages(root: Path) -> None:
    """Writes samples with all class names; the second stage's lists both stages' images."""
    images(root, *(f"train/{'ab'[i % 2]}/{name}.png" for i, name in enumerate(TRAIN)))
    images(root, *(f"test_stage{1 + i % 2}/{name}.png" for i, name in enumerate(TEST)))
    for stage, listed in ((1, TEST[::2]), (2, TEST)):
        table(
            root / f"sample_submission_stage{stage}.csv",
            ["id", "a", "b"],
            [(f"{name}.png", 0.5, 0.5) for name in listed],
        )


def flags(root: Path, ones: int) -> None:
    images(root, *(f"all/{name}.png" for name in [*TRAIN, *TEST]))
    rows = [(name, f"p{i % 7}", *(int((i + at) % 3 < ones) for at in range(3))) for i, name in enumerate(TRAIN)]
    table(root / "train.csv", ["id", "patient", "a", "b", "c"], rows)
    table(root / "test.csv", ["id"], [(name,) for name in TEST])
    table(root / "sample_submission.csv", ["id", "a", "b", "c"], [(name, 0, 0, 0) for name in TEST])


def several_files(root: Path) -> None:
    one_column(root, cycle("1 2", "2", "1 3", "3"), "1")
    for part, listed in (("train", TRAIN), ("test", TEST)):
        for name in listed:
            (root / part / f"{name}.png").rename(root / part / f"{name}_red.png")
            images(root, f"{part}/{name}_green.png")


def columns_of_the_samples_own(root: Path) -> None:
    one_column(root, cycle("cat", "dog"), "cat")
    table(root / "sample_submission.csv", ["id", "kind", "Usage"], [(name, "cat", "Public") for name in TEST])


KINDS: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "words": (lambda root: one_column(root, cycle("a b", "c d"), "a b"), {"task": "classes", "metric": "accuracy"}),
    "0/1": (lambda root: one_column(root, cycle(0, 1), 0), {"task": "classes", "metric": "roc_auc"}),
    "separated": (
        lambda root: one_column(root, cycle("a b", "b", "a c", "c"), "a"),
        {"task": "labels", "data.label_separator": " ", "metric": "labels_f1_micro"},
    ),
    "decimals": (lambda root: one_column(root, [i / 8 for i in COUNT], 0), {"task": "number", "metric": "rmse"}),
    "k best": (lambda root: one_column(root, cycle(*range(9)), "1 2 3"), {"task": "classes", "metric": "map@3"}),
    "class columns": (class_columns, {"data.label_column": "kind", "task": "classes", "metric": "log_loss"}),
    "columns of the sample's own": (
        columns_of_the_samples_own,
        {"data.label_column": "kind", "task": "classes", "metric": "accuracy"},
    ),
    "one-hot": (lambda root: flags(root, 1), {"data.label_columns": ["a", "b", "c"], "task": "classes"}),
    "flags": (lambda root: flags(root, 2), {"task": "labels", "metric": "roc_auc", "data.group_column": "patient"}),
    "COCO": (
        coco,
        {"data.train_csv": "train.json", "data.id_column": "id", "data.label_column": "category_id", "task": "classes"},
    ),
    "folders": (folders, {"data.train_csv": "train/{label}/{file}", "data.test_csv": "test/{file}"}),
    "nested folders": (nested_folders, {"data.train_csv": "seg_train/seg_train/{label}/{file}", "task": "classes"}),
    "names": (names, {"data.train_csv": "train/{label}.{number}.jpg", "metric": "roc_auc"}),
    "inner folders": (inner_folders, {"data.train_csv": "train/{label}/images/{file}"}),
    "one-hot without a sample": (one_hot_alone, {"data.label_columns": ["a", "b", "c"], "task": "classes"}),
    "a sample per stage": (two_stages, {"data.train_csv": "train/{label}/{file}", "metric": "log_loss"}),
    "several files": (several_files, {"data.image_pattern": "{id}_green", "task": "labels"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_detected_and_read_without_a_word_by_hand(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, expected = KINDS[kind]
    make(tmp_path / "input")
    found = detect(tmp_path / "input")
    assert {key: found.values[key] for key in expected} == expected
    assert any("metric" in note for note in found.unknown)

    monkeypatch.chdir(tmp_path)
    prepare.main(["detect"])
    Path("exp.yaml").write_text("")
    config = load_experiment(Path("exp.yaml"))
    assert (config.task, config.metric) == (found.values["task"], found.values["metric"])
    train, problems = read_train_rows(config.data)
    test, test_problems = read_test(config.data)
    assert problems == test_problems == []
    assert len(train) == len(test) == 20
    assert {path.parts[1].removeprefix("seg_") for path in train.paths} <= {"train", "all"}
    assert {path.parts[1].removeprefix("seg_").partition("_")[0] for path in test.paths} <= {"test", "all"}


def test_labels_with_confidences_are_no_ranking(tmp_path: Path) -> None:
    one_column(tmp_path, cycle(*range(9)), "3 0.25")
    found = detect(tmp_path)
    assert found.values["metric"] == "accuracy"
    assert any("confidences" in note for note in found.unknown)


def test_many_integers_may_be_a_quantity(tmp_path: Path) -> None:
    labels = range(100, 140)
    images(tmp_path, *(f"train/{label}.png" for label in labels), "test/x.png")
    table(tmp_path / "train.csv", ["id", "price"], [(label, label) for label in labels])
    table(tmp_path / "sample_submission.csv", ["id", "price"], [("x", 0)])
    assert any("task: number" in note for note in detect(tmp_path).unknown)


@pytest.mark.parametrize(
    "content",
    [
        {"images": [{"id": 1}], "annotations": {"image_id": 1}},
        {"images": [{"id": 1}], "annotations": [{"image_id": 1, "label": 2}, {"label": 3}]},
        [{"id": 1}, "text"],
    ],
)
def test_other_json_files_do_no_harm(tmp_path: Path, content: object) -> None:
    one_column(tmp_path, cycle("a", "b"), "a")
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert detect(tmp_path).values["data.label_column"] == "kind"


def test_a_description_is_never_overwritten(tmp_path: Path) -> None:
    one_column(tmp_path, cycle("a", "b"), "a")
    (tmp_path / "competition.yaml").write_text("metric: f1_macro\n")
    with pytest.raises(UserError, match=r"competition\.yaml"):
        prepare.main(["detect", str(tmp_path)])
    assert (tmp_path / "competition.yaml").read_text() == "metric: f1_macro\n"


def test_every_line_says_why(tmp_path: Path) -> None:
    one_column(tmp_path, cycle("yes: #1", "no"), "no", label="is it?")
    prepare.main(["detect", str(tmp_path)])
    lines = (tmp_path / "competition.yaml").read_text().splitlines()
    assert all(line.startswith("#") or line == "data:" or "  # " in line for line in lines)
    assert plain_yaml.parse("\n".join(lines), "").values["data"]["label_column"] == "is it?"


def test_the_built_in_sample_beside_the_files_is_not_taken_for_them(tmp_path: Path) -> None:
    folders(tmp_path)
    one_column(tmp_path / "sample", cycle("a", "b"), "a")
    (tmp_path / "sample/test_labels.csv").touch()
    assert detect(tmp_path).values["data.train_csv"] == "train/{label}/{file}"


def test_numbers_in_several_columns_are_no_flags(tmp_path: Path) -> None:
    flags(tmp_path, 2)
    table(tmp_path / "train.csv", ["id", "a", "b", "c"], [(name, 0.25, i / 8, 0.5) for i, name in enumerate(TRAIN)])
    assert any("values besides 0 and 1" in line for line in detect(tmp_path).unknown)


def test_a_column_named_like_an_image_is_still_a_column(tmp_path: Path) -> None:
    images(tmp_path, *(f"train/{i}.png" for i in COUNT), *(f"test/x{i}.png" for i in COUNT))
    table(tmp_path / "train.csv", ["id", "0", "1"], [(i, i % 2, 1 - i % 2) for i in COUNT])
    table(tmp_path / "sample_submission.csv", ["id", "0", "1"], [(f"x{i}", 0.5, 0.5) for i in COUNT])
    assert detect(tmp_path).values["data.label_columns"] == ["0", "1"]


def test_pixels_in_a_csv_are_refused_by_name(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", ["label", *(f"pixel{i}" for i in range(784))], [[0] * 785] * 3)
    with pytest.raises(UserError, match=r"train\.csv.*pixels"):
        detect(tmp_path)


@pytest.mark.parametrize("header", [["t0.png", "a"], ["a", "b"]])
def test_a_table_without_a_header_or_without_images_is_no_list_of_rows(tmp_path: Path, header: list[str]) -> None:
    images(tmp_path, *(f"images/{name}.png" for name in TRAIN))
    names = TRAIN if header[0] == "t0.png" else [f"other{i}" for i in COUNT]
    table(tmp_path / "train.csv", header, [(f"{name}.png", i % 2) for i, name in enumerate(names)])
    with pytest.raises(UserError, match=r"train\.csv"):
        detect(tmp_path)


@pytest.mark.parametrize("prefix", ["training_set", "archive/train", "a/b/Train"])
def test_class_folders_may_lie_in_others(tmp_path: Path, prefix: str) -> None:
    test = f"{prefix.rpartition('/')[0]}/test".lstrip("/")
    images(tmp_path, *(f"{prefix}/{'xy'[i % 2]}/{i}.jpg" for i in COUNT), *(f"{test}/{i}.jpg" for i in COUNT))
    found = detect(tmp_path).values
    assert found["data.train_csv"] == f"{prefix}/{{label}}/{{file}}"
    assert found["data.test_csv"] == f"{test}/{{file}}"


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz", "train_labels.tsv", "train.json"])
def test_a_table_that_cannot_be_read_is_named_and_nothing_guessed_instead(tmp_path: Path, name: str) -> None:
    images(tmp_path, *(f"train/{'xy'[i % 2]}_{i}.jpg" for i in COUNT))
    (tmp_path / name).write_bytes("id,kind\nx_0.jpg,caf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=f"not read: .*{name}"):
        detect(tmp_path)


def test_where_nothing_can_be_written_the_lines_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_column(tmp_path, cycle("a", "b"), "a")

    def refuses(path: Path, _: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("scenes.files.write_text", refuses)
    with pytest.raises(UserError, match=r"competition.yaml: cannot be written \(Read-only"):
        prepare.main(["detect", str(tmp_path)])
    assert "label_column: kind" in capsys.readouterr().out


def test_names_that_no_csv_can_hold_are_refused(tmp_path: Path) -> None:
    images(tmp_path, *(f"train/{'xy'[i % 2]}/{i}.jpg" for i in COUNT))
    (tmp_path / os.fsdecode(b"train/x/caf\xe9.jpg")).touch()
    with pytest.raises(UserError, match=r"caf.*not UTF-8"):
        detect(tmp_path)
    with pytest.raises(UserError, match=r"caf.*not UTF-8"):
        read_train_rows(load_experiment(CONFIG, [f"data.root={tmp_path}", "data.train_csv=train/{label}/{file}"]).data)


@pytest.mark.parametrize("text", ["data:\n", "data: [1]\n", "data: 3\n"])
def test_a_description_without_data(tmp_path: Path, text: str) -> None:
    (tmp_path / "competition.yaml").write_text(text)
    if text == "data:\n":
        assert load_experiment(CONFIG, [f"data.root={tmp_path}"]).data.root == tmp_path
    else:
        with pytest.raises(UserError, match=r"competition.yaml, line 1: data"):
            load_experiment(CONFIG, [f"data.root={tmp_path}"])


def test_label_columns_that_are_no_list_are_refused_by_name(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"data\.label_columns"):
        load_experiment(Path("tiny.yaml"), ["data.label_columns=5"])


def test_two_test_folders_are_no_test_folder(tmp_path: Path) -> None:
    images(tmp_path, *(f"train/{'xy'[i % 2]}/{i}.jpg" for i in COUNT), *(f"{side}/test/1.jpg" for side in "ab"))
    found = detect(tmp_path)
    assert "data.test_csv" not in found.values
    assert any("test images" in note for note in found.unknown)


def test_folders_are_no_classes_where_a_table_lists_the_images(tmp_path: Path) -> None:
    images(tmp_path, *(f"part_{1 + i % 2}/{name}.jpg" for i, name in enumerate(TRAIN)))
    rows = [(name, i % 2, i % 3) for i, name in enumerate(TRAIN)]
    table(tmp_path / "metadata.csv", ["image", "sex", "finding"], rows)
    with pytest.raises(UserError, match=r"metadata\.csv.*'finding'"):
        detect(tmp_path)


def test_what_only_splits_the_rows_is_no_label(tmp_path: Path) -> None:
    images(tmp_path, *(f"images/{name}.jpg" for name in TRAIN))
    table(tmp_path / "list.csv", ["image", "partition"], [(name, i % 3) for i, name in enumerate(TRAIN)])
    with pytest.raises(UserError, match=r"list\.csv.*'partition'"):
        detect(tmp_path)


def test_several_rows_of_an_image_are_asked_about(tmp_path: Path) -> None:
    one_column(tmp_path, cycle("a", "b"), "a")
    table(tmp_path / "train.csv", ["id", "kind"], [(name, label) for name in TRAIN[:15] for label in "ab"])
    assert any("30 rows for 15 images" in note for note in detect(tmp_path).unknown)


def test_the_samples_ids_may_be_in_another_column_of_the_test_table(tmp_path: Path) -> None:
    images(tmp_path, *(f"train/{name}.png" for name in TRAIN), *(f"test/{name}.png" for name in TEST))
    table(tmp_path / "train.csv", ["file", "kind"], zip(TRAIN, cycle("a", "b"), strict=True))
    table(tmp_path / "test.csv", ["case", "file"], [(f"case{i}", name) for i, name in enumerate(TEST)])
    table(tmp_path / "sample_submission.csv", ["Id", "kind"], [(f"case{i}", "a") for i in COUNT])
    prepare.main(["detect", str(tmp_path)])
    (tmp_path / "exp.yaml").write_text("")
    config = load_experiment(tmp_path / "exp.yaml", [f"data.root={tmp_path}"])
    assert config.data.id_column == "case"
    (train, problems), (test, test_problems) = read_train_rows(config.data), read_test(config.data)
    assert problems == test_problems == []
    assert train.names == TRAIN
    assert test.names == [f"case{i}" for i in COUNT]
    assert not check_submission_form(config, class_task(["a", "b"]), test)


def test_the_samples_id_need_not_be_its_first_column(tmp_path: Path) -> None:
    folders(tmp_path)
    table(tmp_path / "sample_submission.csv", ["Category", "Id"], [("a c", f"{name}.png") for name in TEST])
    prepare.main(["detect", str(tmp_path)])
    (tmp_path / "exp.yaml").write_text("")
    config = load_experiment(tmp_path / "exp.yaml", [f"data.root={tmp_path}"])
    test, problems = read_test(config.data)
    assert not problems
    assert test.names == [f"{name}.png" for name in TEST]
    assert not check_submission_form(config, class_task(["a c", "b c"]), test)


def test_no_key_is_written_twice(tmp_path: Path) -> None:
    images(tmp_path, *(f"train/{name}.png" for name in TRAIN), *(f"test/{name}.png" for name in TEST))
    table(
        tmp_path / "train.csv", ["Id", "file", "kind"], [(f"c{i}", name, "ab"[i % 2]) for i, name in enumerate(TRAIN)]
    )
    table(tmp_path / "test.csv", ["case", "Id", "file"], [(i, name, name) for i, name in enumerate(TEST)])
    table(tmp_path / "sample_submission.csv", ["kind", "Id"], [("a", name) for name in TEST])
    prepare.main(["detect", str(tmp_path)])
    assert plain_yaml.parse((tmp_path / "competition.yaml").read_text(), "").values["data"]["id_column"] == "Id"


@pytest.mark.parametrize(("name", "says"), [("images.7z", "unpack"), ("a.npy", r"1 \.npy files")])
def test_what_to_do_without_images_depends_on_what_is_there(tmp_path: Path, name: str, says: str) -> None:
    images(tmp_path, name, "readme.txt" if name.endswith("7z") else "train.csv")
    with pytest.raises(UserError, match=says):
        detect(tmp_path)


def test_test_images_of_another_format_are_asked_about(tmp_path: Path) -> None:
    one_column(tmp_path, cycle("a", "b"), "a")
    for name in TEST:
        (tmp_path / f"test/{name}.png").rename(tmp_path / f"test/{name}.tif")
    assert any(".tif" in note and ".png" in note for note in detect(tmp_path).unknown)


def test_files_that_are_no_images_are_named(tmp_path: Path) -> None:
    images(tmp_path, *(f"train/{name}.tfrec" for name in TRAIN))
    with pytest.raises(UserError, match=r"20 \.tfrec files"):
        detect(tmp_path)
