"""COCO-style JSON gives one row per image; errors name the key."""

import json
from pathlib import Path

import pytest

from scenes.competition.coco import load, read_json
from scenes.competition.rows import read_test, read_train_rows
from scenes.config import DataConfig
from scenes.console import UserError
from small import images

IMAGES = [{"id": 7, "file_name": "x/a.jpg", "width": 8}, {"id": 9, "file_name": "x/b.jpg", "width": 8}]
LABELS = [{"id": 1, "image_id": 9, "category_id": 5}, {"id": 2, "image_id": 7, "category_id": 4}]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_images_are_joined_with_their_annotations(tmp_path: Path) -> None:
    file = write(tmp_path / "train.json", {"images": IMAGES, "annotations": LABELS})
    columns, problems = read_json(file, ["id", "category_id"], None)
    assert not problems
    assert columns[["id", "file_name", "category_id"]].values.tolist() == [["7", "x/a.jpg", "4"], ["9", "x/b.jpg", "5"]]
    assert columns.index.tolist() == ["images[0]", "images[1]"]


def test_a_bare_list_and_an_object_are_test_rows(tmp_path: Path) -> None:
    images(tmp_path / "test", "x/a.jpg", "x/b.jpg")
    for content in (IMAGES, {"images": IMAGES}):
        write(tmp_path / "test.json", content)
        data = DataConfig(
            root=tmp_path, test_csv="test.json", test_image_dir="test", image_column="file_name", id_column="id"
        )
        test, problems = read_test(data)
        assert not problems
        assert test.names == ["7", "9"]
        assert test.paths == [tmp_path / "test/x/a.jpg", tmp_path / "test/x/b.jpg"]


def test_several_annotations_of_an_image(tmp_path: Path) -> None:
    equal = [*LABELS, {"image_id": 9, "category_id": 5}]
    _, problems = read_json(write(tmp_path / "a.json", {"images": IMAGES, "annotations": equal}), ["category_id"], None)
    assert not problems
    other = write(tmp_path / "b.json", {"images": IMAGES, "annotations": [*LABELS, {"image_id": 9, "category_id": 3}]})
    _, problems = read_json(other, ["category_id"], None)
    assert "9" in problems[0].what
    assert "'5 3'" in problems[0].what
    assert "data.label_separator" in problems[0].remedy
    columns, problems = read_json(other, ["category_id"], "|")
    assert not problems
    assert columns["category_id"].tolist() == ["4", "5|3"]


def test_lists_of_labels(tmp_path: Path) -> None:
    content = {"images": [{"imageId": "1"}], "annotations": [{"imageId": "1", "labelId": ["3", "8"]}]}
    columns, _ = read_json(write(tmp_path / "a.json", content), ["labelId"], " ")
    assert columns["labelId"].tolist() == ["3 8"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"images": [{"id": 1', ["line 1", "cut off"]),
        ('{"images":\n [}', ["line 2", "JSON"]),
        ('{"licenses": []}', ["images"]),
        ('[{"name": 3}]', ["images[0]", "'name'"]),
        (json.dumps({"images": IMAGES}), ["category_id", "'width'"]),
        ("", ["cut off"]),
        ("[" * 100_000, ["nested"]),
    ],
)
def test_what_is_no_list_of_images_is_refused(tmp_path: Path, content: str, says: list[str]) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError) as error:
        read_json(tmp_path / "a.json", ["category_id"], None)
    assert [text for text in ["a.json", *says] if text not in str(error.value)] == []


def test_everything_that_is_wrong_is_said_with_its_key(tmp_path: Path) -> None:
    listed = [*IMAGES, {"id": 7, "file_name": "x/c.jpg"}, {"file_name": "x/d.jpg"}]
    content = {"images": listed, "annotations": [*LABELS, {"image_id": 77, "category_id": 1}]}
    images(tmp_path / "SceneImages", "x/a.jpg", "x/b.jpg")
    write(tmp_path / "train.json", content)
    data = DataConfig(
        root=tmp_path, train_csv="train.json", image_column="file_name", id_column="id", label_column="category_id"
    )
    _, problems = read_train_rows(data)
    said = " ".join(problem.what for problem in problems)
    assert [text for text in ("images[2] ('7')", "images[3]", "annotations[2] ('77')") if text not in said] == []


@pytest.mark.parametrize(
    "text", ['{"images": [{"id": 1}], "annotations": 5}', '{"images": [{"id": 1}], "annotations": [null]}']
)
def test_annotations_that_are_no_objects_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: .annotations"):
        read_json(tmp_path / "a.json", [], None)


def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" + "1" * 5000 + "]")
    with pytest.raises(UserError, match=r"a\.json: not readable"):
        load(tmp_path / "a.json")
