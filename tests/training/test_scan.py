from pathlib import Path

import pytest
from safetensors.torch import save_file

import scan
from scenes.competition.experiment import load_experiment
from scenes.competition.sample import draw
from scenes.config import ModelConfig
from scenes.console import UserError
from scenes.model.backbone import create_body
from scenes.training.scan import scan as rank

CONFIG = Path(__file__).parents[2] / "configs" / "effnet_lite0_probe.yaml"
SETTINGS = ["data.sample=true", "data.root=input/sample", "data.folds=2", "image_size=32", "model.weights=local"]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the weights of two small networks, in its own workspace."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "input" / "sample" / "weights"
    draw(folder.parent, 60, 10, size=40)
    folder.mkdir()
    for name in ("resnet10t.c3_in1k", "test_resnet.r160_in1k"):
        save_file(create_body(ModelConfig(name=name), 32).state_dict(), folder / f"{name}.safetensors")
    return folder


def test_backbones_with_weights_are_ranked_and_others_named(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["resnet10t.c3_in1k", "test_resnet.r160_in1k", "resnet18.a1_in1k"]
    ranked = rank(load_experiment(CONFIG, SETTINGS), names)
    assert {each.name for each in ranked} == set(names[:2])
    assert ranked[0].value >= ranked[1].value and all(0 < each.error < 0.2 for each in ranked)
    printed = capsys.readouterr().out
    assert "left out: resnet18.a1_in1k" in printed
    assert f"model.name={ranked[0].name}" in printed
    assert rank(load_experiment(CONFIG, SETTINGS), names[:1])[0].value == next(
        each.value for each in ranked if each.name == names[0]
    )


def test_without_any_weights_nothing_is_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"input/weights"):
        scan.main(["resnet18.a1_in1k", "--config", str(CONFIG), "--set", *SETTINGS])
