"""Patterns over paths: the folder or the name gives the label."""

from pathlib import Path

import pytest

from scenes.competition.path_pattern import read_pattern
from scenes.competition.rows import read_test, read_train_rows
from scenes.config import DataConfig
from scenes.console import UserError
from small import images, table


@pytest.mark.parametrize(
    ("pattern", "files", "rows"),
    [
        ("train/{label}/{file}", ["train/b/10.png", "train/b/9.png"], [("b", "b/9.png"), ("b", "b/10.png")]),
        (
            "train/{label}.{number}.jpg",
            ["train/cat.0.jpg", "train/x.y.1.jpg"],
            [("cat", "cat.0.jpg"), ("x.y", "x.y.1.jpg")],
        ),
        ("{label}/{file}", ["a/1.jpg", "b/2.jpg", "loose.jpg"], [("a", "a/1.jpg"), ("b", "b/2.jpg")]),
    ],
)
def test_paths_become_rows(tmp_path: Path, pattern: str, files: list[str], rows: list[tuple[str, str]]) -> None:
    columns = read_pattern(images(tmp_path, *files), pattern, "image")
    assert list(zip(columns["label"], columns["image"], strict=True)) == rows


def test_training_rows_from_paths_and_test_rows_from_the_sample(tmp_path: Path) -> None:
    images(tmp_path, "train/cat.0.jpg", "train/dog.0.jpg", "test/0.jpg", "test/1.jpg")
    table(tmp_path / "sample_submission.csv", ["id", "label"], [("1", 0.5), ("0", 0.5)])
    pattern = "train/{label}.{number}.jpg"
    data = DataConfig(root=tmp_path, train_csv=pattern, image_column="id", test_image_dir="test", image_suffix=".jpg")
    train, problems = read_train_rows(data)
    assert (train.names, train.columns["label"].tolist(), problems) == (["cat.0.jpg", "dog.0.jpg"], ["cat", "dog"], [])
    test, problems = read_test(data)
    assert (test.names, [path.name for path in test.paths], problems) == (["1", "0"], ["1.jpg", "0.jpg"], [])


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("gone/{label}/{file}", ["gone", "no such folder"]),
        ("train/{label}/{file}", ["train", "0.jpg"]),
        ("train/{kind}.jpg", ["{label}", "'kind'"]),
    ],
)
def test_a_pattern_that_cannot_be_used(tmp_path: Path, pattern: str, says: list[str]) -> None:
    images(tmp_path, "train/0.jpg")
    with pytest.raises(UserError) as error:
        read_train_rows(DataConfig(root=tmp_path, train_csv=pattern))
    assert [text for text in says if text not in str(error.value)] == []


def test_a_repeated_field_matches_the_same_text(tmp_path: Path) -> None:
    images(tmp_path, "cat/cat_1.jpg", "cat/dog_2.jpg", "dog/dog_3.jpg")
    rows = read_pattern(tmp_path, "{label}/{label}_{number}.jpg", "image")
    assert rows["image"].tolist() == ["cat/cat_1.jpg", "dog/dog_3.jpg"]
    with pytest.raises(UserError, match=r"\{0\}"):
        read_pattern(tmp_path, "{0}/{label}.jpg", "image")
