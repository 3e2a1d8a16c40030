"""Curves reach the trackers that are there, and the rest of a run does not need any."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scenes.config import validate
from scenes.training.trackers import Trackers


class StandInRun:
    """What wandb.init returns, as far as it is used."""

    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.is_finished = options, [], False

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


def test_weights_and_biases_gets_the_config_and_each_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("wandb")
    stand_in.__spec__ = ModuleSpec("wandb", None)
    runs: list[StandInRun] = []
    stand_in.init = lambda **options: runs.append(StandInRun(**options)) or runs[0]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    config = validate({"name": "x", "train": {"wandb": "project"}}, "test")
    trackers = Trackers(config, tmp_path, "fold0", 0)
    trackers.log({"train_loss": 1.5}, 7)
    trackers.close()
    assert runs[0].options["project"] == "project"
    assert runs[0].options["config"]["train"]["lr"] == config.train.lr
    assert runs[0].logged == [(7, {"train_loss": 1.5})]
    assert runs[0].is_finished


def test_tensorboard_gets_each_point(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(validate({"name": "x"}, "test"), tmp_path, "fold0", 0)
    trackers.log({"train_loss": 1.5}, 7)
    trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train_loss")
    assert [(event.step, event.value) for event in events] == [(7, 1.5)]
