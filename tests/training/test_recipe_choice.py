"""The recipe depends on how much a linear probe explains, holds for the whole run, and can be overridden by --set."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import infer
import train
from scenes.competition import linear_head
from scenes.config import Config, ModelConfig
from scenes.config_file import load_config, with_recipe
from scenes.console import UserError
from scenes.model.backbone import create_body
from scenes.runs import Run
from scenes.training import recipe_choice
from tiny import TINY, fit

RECIPES = "near: {train.epochs: 1, train.lr: 1e-3}\nfar: {train.epochs: 2, augment: medium}\n"
WEIGHTS = ["model.name=tf_efficientnet_lite0.in1k", "model.weights=local", "--folds=0"]
TINY_EPOCHS = 2
COLOURS = [(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (200, 200, 200)]  # by label


def chosen(name: str = "tiny") -> Config:
    return Run(Path("runs") / name).load_config()


@pytest.fixture
def experiment(workspace: Path) -> Path:
    """tiny.yaml with both recipes."""
    (workspace / "tiny.yaml").write_text(RECIPES)
    return workspace


@pytest.mark.parametrize(
    ("recipe", "augment", "few"), [("near", "light", 0), ("far", "medium", 0), ("near", "light", 1000)]
)
def test_colours_are_near_and_noise_is_far_but_for_few_rows(
    recipe: str, augment: str, few: int, experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe_choice, "FEW", few)
    rng = np.random.default_rng(0)
    for name, label in pd.read_csv("input/train.csv").itertuples(index=False):
        pixels = rng.integers(0, 256, (48, 48, 3), np.uint8)
        if recipe == "near" and not few:
            pixels = pixels // 8 + np.uint8(COLOURS[label])
        Image.fromarray(pixels).save(Path("input/SceneImages") / name)
    fit(*WEIGHTS)
    assert (chosen().recipe, chosen().augment) == (recipe, augment)
    assert chosen().near == chosen().far == {}


def test_no_probe_is_fitted_where_that_would_take_hours(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(linear_head, "MOST_VALUES", 100)
    monkeypatch.setattr(recipe_choice, "FEW", 0)
    fit(*WEIGHTS)
    assert chosen().recipe == "far"
    fit(*WEIGHTS, "name=near", "recipe=near")
    assert pd.read_csv("runs/near/fold0/history.csv")["epoch"].min() == 1
    assert "96 rows and 6 outputs would take hours" in capsys.readouterr().out
    fit(*WEIGHTS, "name=probe", "recipe=near", "train.epochs=0")  # there is nothing else to it
    assert pd.read_csv("runs/probe/fold0/history.csv")["epoch"].tolist() == [0]


def test_settings_of_the_command_line_win(experiment: Path) -> None:
    fit("--folds=0", "recipe=far", "augment=none")
    assert chosen().augment == "none"
    assert chosen().train.epochs == TINY_EPOCHS  # from TINY, which is passed with --set


def test_a_recipe_of_a_config_without_any_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain.yaml"
    plain.write_text("image_size: 32\n")
    with pytest.raises(UserError, match="no recipes near and far"):
        load_config(plain, ["recipe=far"])
    assert load_config(plain, ["recipe=auto"]).recipe == "auto"


def test_a_run_keeps_its_recipe(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit("--folds=0")
    assert chosen().recipe == "far"  # without pretrained weights no images are near
    run = Run(Path("runs/tiny"))
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("recipe: far", "recipe: near").replace("augment: medium", "augment: light"))
    capsys.readouterr()
    fit("--folds=0")
    assert "recipe: near" in capsys.readouterr().out


def test_a_recipe_of_another_size_trains_as_a_config_of_that_size(workspace: Path) -> None:
    settings = [setting for setting in TINY if not setting.startswith("image_size")]
    (workspace / "chosen.yaml").write_text("image_size: 16\nfar: {image_size: 32, infer.image_size: 40}\n")
    (workspace / "set.yaml").write_text("image_size: 32\ninfer: {image_size: 40}\n")
    for name in ("chosen", "set"):
        train.main([f"{name}.yaml", "--folds=0", "--set", *settings])
    assert (chosen("chosen").image_size, chosen("chosen").predict_size) == (32, 40)
    one, other = (load_file(f"runs/{name}/fold0/weights.safetensors") for name in ("chosen", "set"))
    assert all(torch.equal(one[key], other[key]) for key in other)  # trained on images as sharp as that size needs
    train.main(["chosen.yaml", "--submit", "--set", *settings])  # a second command keeps size and images
    assert chosen("chosen").image_size == 32
    infer.main(["--run", "runs/chosen", "--out", "again.csv"])
    submitted = Path("submissions/chosen_probabilities.csv").read_bytes()
    assert submitted == Path("again_probabilities.csv").read_bytes()


def test_a_recipe_of_another_size_reads_the_weights_of_that_size(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe_choice, "FEW", 0)
    monkeypatch.setattr(recipe_choice, "NEAR", 1.1)  # all images are far
    body = create_body(ModelConfig(name="test_vit"), 160)
    save_file(body.state_dict(), "body.safetensors")
    (workspace / "vit.yaml").write_text("image_size: 32\nfar: {image_size: 48}\n")
    settings = [setting for setting in TINY if not setting.startswith(("image_size", "model"))]
    train.main(["vit.yaml", "--folds=0", "--set", *settings, "model.name=test_vit", "model.weights=body.safetensors"])
    assert chosen("vit").image_size == 48


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{train.epoch: 3}", "train.epochs"),
        ("{train: {epochs: 3}}", "dotted train keys"),
        ("{augment.medium: true}", "augment"),
        ("{model.name: vgg16}", "not a setting that a recipe may change"),
        ("{train.batch_size: 8}", "not a setting that a recipe may change"),
        ("{train.epochs: many}", "train.epochs"),
        ("{far: 3}", "far"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(settings: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"near: {settings}\n")
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "a.yaml")


def test_a_recipe_replaces_both(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("near: {train.lr: 1e-3, train.trainable_stages: 2}\nfar: {train.lr: 2e-3}\n")
    config = load_config(tmp_path / "a.yaml", ["train.trainable_stages=3"])
    near = with_recipe(config, "near")
    assert (near.train.lr, near.train.trainable_stages) == (1e-3, 3)
    assert with_recipe(config, "far").train.lr == 2e-3
    assert load_config(tmp_path / "a.yaml", ["near={}", "far={}"]).near == {}


def test_a_mistake_is_shown_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\nfar:\n  train.lr: 1e-3\n  train.epochs: many\n")
    with pytest.raises(UserError, match="line 4"):
        load_config(tmp_path / "a.yaml")


def test_rows_that_are_all_trained_on_leave_nothing_to_tell_by(
    experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe_choice, "FEW", 0)
    table = pd.read_csv("input/train.csv").groupby("label").head(1)
    table.to_csv("input/train.csv", index=False)
    fit(*WEIGHTS[:2], "--folds=full")
    assert chosen().recipe == "far"
