"""sweep.py end to end on the tiny competition: what it searches, how it resumes, what it refuses."""

import errno
import json
import os
import re
import shutil
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import FileLock

pytest.importorskip("optuna")

import sweep
from scenes.config_file import load_config
from scenes.console import StoppedError, UserError
from scenes.script import report
from scenes.training import crossval, trial, workers
from scenes.training.workers import OUT_OF_TIME, Task
from tiny import TINY

SETTINGS = [*TINY, "train.epochs=1", "train.batch_size=48"]
SPACE = "train.lr: {low: 1e-3, high: 1e-1, log: true}\naugment: [light, medium]\ntrain.accumulate: {low: 1, high: 3}\n"


def run(*arguments: str, trials: int = 2) -> None:
    sweep.main(["tiny.yaml", "--space", "space.yaml", "--trials", str(trials), *arguments, "--set", *SETTINGS])


@dataclass(eq=False)
class HereSlot:
    """Runs the children's commands in this process, which is faster; test_workers.py covers processes."""

    name: str = "here"
    codes: list[int] = field(default_factory=list)
    started: list[str] = field(default_factory=list)

    def start(self, task: Task) -> "HereSlot":
        task.log("here")
        self.started.append(task.label)
        self.code = self.codes.pop(0) if self.codes else 0
        if not self.code:
            with task.log_file.open("a") as log, redirect_stderr(log):
                try:
                    trial.main(task.command()[2:])
                except (SystemExit, OSError) as error:
                    self.code = report(error) if isinstance(error, OSError) else int(error.code or 0)
        return self

    def poll(self) -> int:
        return self.code

    def ask_to_stop(self) -> None:
        pass

    kill = ask_to_stop


@pytest.fixture
def here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Path("space.yaml").write_text(SPACE)
    monkeypatch.setattr(workers, "local_slots", lambda *_: [HereSlot()])
    monkeypatch.setattr(workers, "POLL_SECONDS", 0)
    return workspace


@pytest.fixture
def slots(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[HereSlot]:
    two = [HereSlot(), HereSlot()]
    monkeypatch.setattr(workers, "make_slots", lambda asked, *_: two if asked else [])
    return two


def test_the_best_trial_becomes_a_config_and_the_sweep_resumes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--folds=0")
    first = capsys.readouterr().out
    assert [first.count(f"trial {number}: train.lr") for number in range(3)] == [1, 1, 0]
    best = load_config(Path("runs/tiny.sweep/best.yaml"))
    assert best.name == "tiny_best"
    assert 1e-3 <= best.train.lr <= 1e-1
    assert best.augment in ("light", "medium")
    assert best.selected_on == ["runs/tiny.sweep"]
    assert sorted(path.name for path in Path("runs").iterdir()) == ["tiny.sweep"]  # trials leave no networks behind
    run("--folds=0", trials=3)
    second = capsys.readouterr().out
    assert "1 trials to go" in second
    assert "trial 2: train.lr" in second
    assert len(re.findall(r"trial \d+: train", second)) == 1
    run("--folds=0", trials=3)
    assert not re.findall(r"trial \d+: train", capsys.readouterr().out)


def test_a_trial_that_was_cut_off_comes_first(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = crossval.cross_validate

    def dies_at_the_second_fold(config: object, folds: list[int]) -> object:
        if folds == [1]:
            raise KeyboardInterrupt
        return train(config, folds)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(crossval, "cross_validate", dies_at_the_second_fold)
        run(trials=1)
    begun = capsys.readouterr().out.partition("trial 0: ")[2].splitlines()[0]
    run(trials=1)
    after = capsys.readouterr().out
    assert begun in after  # the same values
    assert "trial 1 fold1" in after


def test_a_trial_costs_the_mean_of_its_folds_as_they_are_scored_together(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # so the trial's run stays
    run(trials=1)
    (metrics,) = (json.loads(file.read_text()) for file in Path("runs").glob("*trial-*/metrics.json"))
    costs = [fold["cost"] for fold in metrics["per_fold"].values()]
    assert f"trial 0: {metrics['cost']} {sum(costs) / 2:.4f}" in capsys.readouterr().out


def test_a_sweep_at_work_is_left_alone(here: Path) -> None:
    Path("runs/tiny.sweep").mkdir(parents=True)
    with FileLock("runs/tiny.sweep/.lock"), pytest.raises(UserError, match="another process"):
        run()
    assert [path.name for path in Path("runs").rglob("*")] == ["tiny.sweep", ".lock"]


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ("", "a search space consists of"),
        ("- 1", "a search space consists of"),
        ("train.lr: 3", r"train\.lr: write a list"),
        ("train.lr: []", r"train\.lr: write a list"),
        ("train.lr: {low: 1}", r"train\.lr: write a list"),
        ("train.lr: {low: 1, high: 2, logg: true}", r"train\.lr: write a list"),
        ("train.lr: {low: 2, high: 1}", "low < high"),
        ("train.lr: {low: a, high: b}", "low < high"),
        ("train.lr: {low: 0, high: 1, log: true}", "above 0"),
        ("train.lrr: {low: 1, high: 2}", "train.lr"),
        ("train.epochs: {low: -1, high: 2}", "train.epochs"),
        ("train.lr: {low: 1, low: 2}", "space.yaml"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(space: str, says: str, here: Path) -> None:
    Path("space.yaml").write_text(space)
    with pytest.raises(UserError, match=says):
        run()
    assert not Path("runs").exists()


def test_another_space_needs_another_name(here: Path) -> None:
    run("--folds=0", trials=1)
    Path("space.yaml").write_text("train.lr: [1e-3, 1e-2]\n")
    with pytest.raises(UserError, match="began with another space"):
        run("--folds=0", trials=1)


@pytest.mark.parametrize(
    "arguments", [["--folds", "full"], ["--folds", "7"], ["--trials", "0"], ["--space", "none.yaml"]]
)
def test_wrong_arguments_are_refused(arguments: list[str], here: Path) -> None:
    with pytest.raises(UserError):
        run(*arguments)


def test_slots_share_the_trials_and_the_sweep_resumes(
    slots: list[HereSlot], capsys: pytest.CaptureFixture[str]
) -> None:
    run("--parallel=2")
    assert slots[0].started[:2] == ["trial 0 fold0", "trial 0 fold1"]
    assert slots[1].started[:2] == ["trial 1 fold0", "trial 1 fold1"]
    assert sum(len(slot.started) for slot in slots) == 4
    assert load_config(Path("runs/tiny.sweep/best.yaml")).name == "tiny_best"
    assert [path.name for path in Path("runs").iterdir()] == ["tiny.sweep"]
    assert "2 trials were completed, 0 stopped early" in capsys.readouterr().out
    run("--parallel=2", trials=3)
    assert "1 trials to go" in capsys.readouterr().out


def test_trials_with_the_same_values_train_one_after_the_other(
    slots: list[HereSlot], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("space.yaml").write_text("augment: [light]\n")
    run("--parallel=2")
    started = [label for slot in slots for label in slot.started]
    assert sorted(started) == [f"trial {trial} fold{fold}" for trial in range(2) for fold in range(2)]
    assert "2 trials were completed" in capsys.readouterr().out


def test_a_trial_whose_process_dies_ends_the_sweep_and_comes_first_next_time(
    slots: list[HereSlot], capsys: pytest.CaptureFixture[str]
) -> None:
    slots[0].codes = [1]
    with pytest.raises(UserError, match="trial 0 fold0: failed with exit code 1"):
        run("--parallel=2")
    started = sorted(label for slot in slots for label in slot.started)
    assert started == ["trial 0 fold0", "trial 1 fold0", "trial 1 fold1"]  # what had begun was finished
    values = capsys.readouterr().out.partition("trial 0: ")[2].splitlines()[0]
    run("--parallel=2")
    assert f"trial 2: {values}" in capsys.readouterr().out


def test_a_trial_that_diverges_leaves_the_other_slots_alone(
    slots: list[HereSlot], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("space.yaml").write_text("train.lr: [1e-3, 1e30]\n")
    settings = [*SETTINGS, "train.optimizer=sgd", "train.clip_norm=null", "train.epochs=4"]
    arguments = ["--space", "space.yaml", "--trials", "5", "--folds", "0", "--parallel", "2"]
    sweep.main(["tiny.yaml", *arguments, "--set", *settings])
    printed = capsys.readouterr().out
    assert "was given up" in printed and "no longer finite" in printed
    assert load_config(Path("runs/tiny.sweep/best.yaml")).train.lr == 1e-3


def test_a_full_disk_is_no_bad_trial_and_stops_the_sweep(
    slots: list[HereSlot], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def disk_is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device"):
        patch.setattr(crossval, "cross_validate", disk_is_full)
        run("--parallel=2", "--folds=0")
    assert "given up" not in capsys.readouterr().out
    run("--parallel=2", "--folds=0", trials=1)
    assert "1 trials were completed" in capsys.readouterr().out


def test_a_time_budget_holds_for_the_sweep_which_then_resumes(here: Path) -> None:
    command = ["tiny.yaml", "--space", "space.yaml", "--trials", "2", "--folds=0", "--set", *SETTINGS]
    with pytest.raises(StoppedError, match="time budget") as stopped:
        sweep.main([*command, "train.time_budget_minutes=1e-3"])
    assert stopped.value.exit_code == OUT_OF_TIME
    sweep.main([*command, "train.time_budget_minutes=60"])
    assert load_config(Path("runs/tiny.sweep/best.yaml")).train.time_budget_minutes is None


def test_a_trial_runs_in_a_process_of_its_own(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("space.yaml").write_text("train.lr: [1e-3, 1e-2]\n")
    run("--folds=0", trials=1)
    assert "1 trials were completed" in capsys.readouterr().out
