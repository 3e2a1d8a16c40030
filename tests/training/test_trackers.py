"""Curves reach the trackers that are installed, and the rest of a run needs none."""

import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

import train
from scenes.config_file import validate
from scenes.console import StoppedError
from scenes.training.trackers import Trackers
from tiny import TINY

CURVES = {"train_loss", "val_loss", "val_accuracy", "lr", "images_per_second"}


class StandInRun:
    """The part of wandb.init's result that is used."""

    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.is_finished = options, [], False

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[StandInRun]:
    """The runs that a stand-in for wandb was asked to start."""
    stand_in, begun = ModuleType("wandb"), list[StandInRun]()
    stand_in.__spec__ = ModuleSpec("wandb", None)
    stand_in.init = lambda **options: begun.append(StandInRun(**options)) or begun[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return begun


def test_weights_and_biases_gets_the_config_and_each_point(tmp_path: Path, runs: list[StandInRun]) -> None:
    config = validate({"name": "x", "train": {"wandb": "project"}}, "test")
    trackers = Trackers(config, tmp_path, "fold0")
    trackers.log({"train_loss": 1.5, "val_loss": None}, 7)
    trackers.close()
    assert runs[0].options["project"] == "project"
    assert runs[0].options["mode"] == "offline"
    assert runs[0].options["config"]["train"]["lr"] == config.train.lr
    assert runs[0].logged == [(7, {"train_loss": 1.5})]
    assert runs[0].is_finished


def points(history: pd.DataFrame) -> dict[str, list[tuple[int, float]]]:
    """The curves of history.csv: (step, value) by name."""
    steps = history["steps"].cumsum()
    columns = {name: zip(steps, history[name], strict=True) for name in CURVES}
    return {
        name: [(int(step), value) for step, value in each if not math.isnan(value)] for name, each in columns.items()
    }


def drawn(logged: list[tuple[int, dict[str, float]]]) -> dict[str, list[tuple[int, float]]]:
    """The same for what was logged, in order."""
    return {name: [(step, values[name]) for step, values in logged if name in values] for name in CURVES}


def test_after_a_resume_the_curves_are_those_of_history_csv(
    workspace: Path, runs: list[StandInRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = ["tiny.yaml", "--folds=0", "--set", *TINY, "train.epochs=3", "train.wandb=project"]
    command += ["train.checkpoint_minutes=60"]
    with monkeypatch.context() as patch:
        # Killed after the second epoch was logged and before it was saved: that epoch is trained and logged again.
        log = Trackers.log

        def log_and_fail(self: Trackers, values: dict[str, Any], step: int) -> None:
            log(self, values, step)
            if values.get("epoch") == 2:
                raise StoppedError("as if killed", 1)

        patch.setattr(Trackers, "log", log_and_fail)
        with pytest.raises(StoppedError):
            train.main(command)
    train.main(command)
    expected = points(pd.read_csv("runs/tiny/fold0/history.csv"))
    assert {name: len(each) for name, each in expected.items()} == dict.fromkeys(CURVES, 3)
    board = EventAccumulator("runs/tiny/fold0/tensorboard").Reload()
    for name in CURVES:
        events = [(event.step, event.value) for event in board.Scalars(name)]
        assert [step for step, _ in events] == [step for step, _ in expected[name]]
        assert [value for _, value in events] == pytest.approx([value for _, value in expected[name]], rel=1e-4)
    logged = drawn(runs[1].logged)  # all are logged again; Weights & Biases accepts each step once
    assert {name: [step for step, _ in each] for name, each in logged.items()} == {
        name: [step for step, _ in each] for name, each in expected.items()
    }
    assert [run.options["id"] for run in runs] == ["tiny-fold0"] * 2


def test_tensorboard_gets_each_point(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(validate({"name": "x"}, "test"), tmp_path, "fold0")
    trackers.log({"train_loss": 1.5}, 7)
    trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train_loss")
    assert [(event.step, event.value) for event in events] == [(7, 1.5)]
