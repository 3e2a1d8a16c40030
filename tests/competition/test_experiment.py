"""An experiment's config overrides its competition's description."""

from pathlib import Path

import pytest

from scenes.competition.experiment import load_experiment
from scenes.config import Config
from scenes.config_file import dump, load_config
from scenes.console import UserError
from small import images, table


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images(Path("input"), *(f"SceneImages/{i}.jpg" for i in range(4)))
    table(Path("input/train.csv"), ["image_name", "label"], [(f"{i}.jpg", i % 2) for i in range(4)])


def load(description: str | None = None, experiment: str = "", *overrides: str) -> Config:
    Path("exp.yaml").write_text(experiment)
    if description is not None:
        Path("input/competition.yaml").write_text(description)
    return load_experiment(Path("exp.yaml"), overrides)


def test_the_default_layout_needs_no_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert load() == load_config(Path("exp.yaml"))
    assert capsys.readouterr().out == ""


def test_each_layer_is_over_the_one_before() -> None:
    layers = ("metric: log_loss\ntask: classes\ndata:\n  folds: 3\n  image_suffix: .png\n", "data:\n  folds: 4\n")
    config = load(*layers, "metric=f1_macro")
    assert (config.metric, config.task, config.data.folds, config.data.image_suffix) == (
        "f1_macro",
        "classes",
        4,
        ".png",
    )


def test_the_description_lies_in_data_root() -> None:
    table(Path("other/train.csv"), ["a"], [])
    Path("other/competition.yaml").write_text("metric: rmse\n")
    assert load("metric: mae\n", "", "data.root=other").metric == "rmse"


def test_a_label_column_takes_the_place_of_label_columns() -> None:
    assert load("data:\n  label_columns: [a, b]\n", "", "data.label_column=c").data.label_columns is None
    assert load("data:\n  label_column: c\n", "", "data.label_columns=[a, b]").data.label_columns == ["a", "b"]


def test_a_run_keeps_the_resolved_whole() -> None:
    config = load("metric: log_loss\ndata:\n  folds: 3\n")
    Path("input/competition.yaml").write_text("metric: mae\n")
    Path("resolved.yaml").write_text(dump(config))
    assert load_experiment(Path("resolved.yaml")) == config


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metrc: x\n", ["line 1", "'metrc'"]),
        ("task: labels\ndata:\n  label_colum: a\n", ["line 3", "'data.label_colum'"]),
        ("train:\n  epochs: 3\n", ["line 1", "'train'", "configs"]),
        ("data:\n  root: x\n", ["line 2", "'data.root'"]),
        ("task: sorting\n", ["line 1", "task", "'sorting'"]),
        ("data: 3\n", ["line 1", "data"]),
        ("- a\n", ["list"]),
        ("task: [\n", ["YAML"]),
    ],
)
def test_a_wrong_description_is_refused_with_its_line(text: str, says: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load(text)
    assert [part for part in ["competition.yaml", *says] if part not in str(error.value)] == []


def test_another_layout_is_inferred_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    Path("input/SceneImages").rename("input/pictures")
    table(Path("input/train.csv"), ["file", "kind"], [(f"{i}.jpg", "ab"[i % 2]) for i in range(4)])
    config = load()
    assert (config.data.image_column, config.data.label_column) == ("file", "kind")
    assert config.data.image_dir == Path("pictures")
    assert "prepare.py detect" in capsys.readouterr().out
    assert not Path("input/competition.yaml").exists()


def test_files_that_say_too_little_leave_the_defaults() -> None:
    table(Path("input/train.csv"), ["file", "kind", "sort"], [("x.jpg", 1, 2)])
    assert load() == load_config(Path("exp.yaml"))
