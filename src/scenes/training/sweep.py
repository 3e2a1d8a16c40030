"""Searches for better settings: Optuna proposes trials, two folds evaluate them, bad trials stop early."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, Trial, TrialState

from scenes import plain_yaml
from scenes.competition.experiment import load_experiment
from scenes.config import Config
from scenes.config_file import dump
from scenes.console import Problem, StoppedError, UserError, print_table, raise_problems, say
from scenes.files import only_process, write_result
from scenes.randomness import key
from scenes.runs import RUNS, Run, fold_name, read_json
from scenes.training.prepare import prepare
from scenes.training.trial import CANNOT_TRAIN
from scenes.training.workers import INTERRUPTED, OUT_OF_TIME, Slot, Task, failure, run_tasks

SHOWN = 5  # trials in the final table
RANGE_KEYS = {"low", "high", "log"}

Space = Mapping[str, Any]


def sweep(
    config_file: Path,
    overrides: Sequence[str],
    space_file: Path,
    trials: int,
    folds: Sequence[int],
    slots: Sequence[Slot],
) -> Path:
    """Searches a space for the settings with the lowest held-out cost; resumes a sweep that was stopped.

    The cost is the log loss, or is computed from the metric if that looks at probabilities or numbers.

    Args:
        config_file: The experiment to improve.
        overrides: ``key=value`` strings, as in train.py.
        space_file: What to search, see configs/sweeps/.
        trials: The total number of trials, including those before a stop.
        folds: The folds to evaluate each trial on.
        slots: Where trials run; each fold of a trial is a process.

    Returns:
        The file of the best config.

    Raises:
        UserError: If the space or a config cannot be used, the sweep is already running, or no trial was completed.
        StoppedError: If a signal or ``train.time_budget_minutes``, which holds for the whole sweep, stopped it.
    """
    start, base = time.time(), load_experiment(config_file, overrides)
    until = start + 60 * (base.train.time_budget_minutes or inf)
    overrides = [*overrides, "train.time_budget_minutes=null"]  # of the sweep, not of each trial
    base = base.model_copy(update={"train": base.train.model_copy(update={"time_budget_minutes": None})})
    space = read_space(space_file)
    _check_ends(config_file, overrides, base.name, space, folds)
    folder = RUNS / f"{base.name}.sweep"
    with only_process(folder, "running this sweep"):  # two would mistake each other's trials for interrupted ones
        study = _open(folder, base, space, folds)
        _enqueue_interrupted(study)
        left = trials - len(_done(study))
        if left > 0:
            listed = ", ".join(map(str, folds))
            say(f"{folder}: {left} trials to go, folds {listed}; if stopped, give the same command again to resume")
            _Search(study, config_file, overrides, base.name, space, folds, left, until).run(slots)
        best = _show(study, folder)
        path = folder / "best.yaml"
        chosen = f"selected_on={json.dumps([*base.selected_on, str(folder)])}"  # its CV on these folds is optimistic
        settings = [*_settings(overrides, best, f"{base.name}_best"), chosen]
        write_result(path, dump(load_experiment(config_file, settings)))
        return path


def read_space(path: Path) -> dict[str, Any]:
    """Reads what to search: ``key: [choices]`` or ``key: {low: …, high: …, log: true}``.

    Raises:
        UserError: If the file contains anything else.
    """
    try:
        space = plain_yaml.parse(path.read_text(encoding="utf-8-sig"), str(path)).values
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable YAML file ({error}); see configs/sweeps/finetune.yaml") from None
    if not isinstance(space, dict) or not space:
        raise UserError(f"{path}: a search space consists of `key: [choices]` and `key: {{low: …, high: …}}` lines")
    for name, part in space.items():
        if isinstance(part, list) and part and all(isinstance(choice, bool | int | float | str) for choice in part):
            continue
        if not isinstance(part, dict) or not {"low", "high"} <= set(part) <= RANGE_KEYS:
            raise UserError(f"{path}: {name}: write a list of plain values, or {{low: …, high: …, log: true}}")
        low, high = part["low"], part["high"]
        if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)) or low >= high:
            raise UserError(f"{path}: {name}: low and high must be numbers, with low < high")
        if part.get("log") and low <= 0:
            raise UserError(f"{path}: {name}: a logarithmic range must start above 0")
    return space


def _check_ends(config_file: Path, overrides: Sequence[str], name: str, space: Space, folds: Sequence[int]) -> None:
    """Checks the experiment at both ends of every range, so that mistakes are found before the first trial."""
    for number, end in ((0, "low"), (-1, "high")):
        values = {key: part[number] if isinstance(part, list) else part[end] for key, part in space.items()}
        prepare(load_experiment(config_file, _settings(overrides, values, name)), folds)


def _settings(overrides: Sequence[str], values: Mapping[str, Any], name: str) -> list[str]:
    """The ``--set`` values that give an experiment these settings and this name."""
    return [*overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items()), f"name={name}"]


def _open(folder: Path, base: Config, space: Space, folds: Sequence[int]) -> optuna.Study:
    """Opens the study in the folder's SQLite file; refuses one that began with something different."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{(folder / 'study.db').resolve()}"
    study = optuna.create_study(storage=storage, study_name=base.name, load_if_exists=True)
    # With the same seed after a stop, the sampler would repeat its proposals.
    study.sampler = optuna.samplers.TPESampler(seed=key("sweep", base.seed, len(study.trials)) % 2**32)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    begun = {"config": dump(base), "space": json.dumps(space), "folds": list(folds)}
    for name, value in begun.items():
        if study.user_attrs.get(name, value) != value:
            raise UserError(
                f"{folder}: this sweep began with another {name}; restore it, or rename the new one: --set name=NEW"
            )
        study.set_user_attr(name, value)
    return study


def _done(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _enqueue_interrupted(study: optuna.Study) -> None:
    """Puts killed and failed trials first in the queue; their runs resume from their checkpoints."""
    waiting = [trial.params for trial in [*_done(study), *study.get_trials(states=(TrialState.WAITING,))]]
    for trial in study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL)):
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.params and trial.params not in waiting:
            study.enqueue_trial(trial.params)
            waiting.append(trial.params)


@dataclass(eq=False)
class _Attempt:
    """A trial, the run it trains, and its folds' costs so far."""

    trial: Trial
    settings: list[str]
    run: Run
    costs: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.costs) / len(self.costs)


@dataclass
class _Search:
    """Trains the trials that Optuna proposes, fold by fold, and reports the results to it."""

    study: optuna.Study
    config_file: Path
    overrides: Sequence[str]
    name: str
    space: Space
    folds: Sequence[int]
    left: int
    until: float
    ready: list[_Attempt] = field(default_factory=list)
    running: dict[Task, _Attempt] = field(default_factory=dict)
    failures: list[Problem] = field(default_factory=list)

    def run(self, slots: Sequence[Slot]) -> None:
        """Trains the remaining trials.

        Raises:
            UserError: With the folds that failed for a reason other than their settings.
            StoppedError: If a signal or the time budget stopped it.
        """
        if run_tasks(slots, self._next_task, self._ended):
            raise StoppedError("interrupted", INTERRUPTED)
        raise_problems(self.failures, "The sweep stopped; the trials that were running are complete")
        if self.ready or self.left:
            raise StoppedError("the time budget is used up", OUT_OF_TIME)

    def _next_task(self, _: Slot) -> Task | None:
        if time.time() >= self.until:
            return None
        if not self.ready and self.left and not self.failures:
            self.left -= 1
            self.ready.append(self._begin(self.study.ask()))
        names = {attempt.run.name for attempt in self.running.values()}
        # Trials with equal values share a run, which is deleted once one is done, so one that has started goes first.
        waiting = sorted(self.ready, key=lambda attempt: -len(attempt.costs))
        attempt = next((attempt for attempt in waiting if attempt.run.name not in names), None)
        if attempt is None:
            return None
        self.ready.remove(attempt)
        fold = self.folds[len(attempt.costs)]
        command = ("-m", "scenes.training.trial", str(self.config_file), "--fold", str(fold))
        label = f"trial {attempt.trial.number} {fold_name(fold)}"
        task = Task(label, attempt.run.fold_folder(fold) / "log.txt", command, attempt.settings, self.until)
        self.running[task] = attempt
        return task

    def _begin(self, trial: Trial) -> _Attempt:
        """Draws a trial's settings."""
        values = {name: _suggest(trial, name, part) for name, part in self.space.items()}
        say(f"trial {trial.number}: {', '.join(f'{name} {_shown(value)}' for name, value in values.items())}")
        # Named after the values, so that a retried trial finds its run.
        name = f"{self.name}.trial-{key('trial', repr(sorted(values.items()))):016x}"
        return _Attempt(trial, _settings([*self.overrides, "report=false"], values, name), Run(RUNS / name))

    def _ended(self, task: Task, code: int, lines: Sequence[str]) -> None:
        """Handles a fold that ended: its trial continues, is complete, is stopped early or is given up."""
        attempt = self.running.pop(task)
        trial = attempt.trial
        if code == CANNOT_TRAIN:
            say(f"trial {trial.number} was given up: {' '.join(lines)}")
            self._close(attempt, TrialState.PRUNED)
        elif code == OUT_OF_TIME:
            self.ready.append(attempt)
        elif code:
            self.failures.append(failure(task, code, lines))  # still running in the study: the next sweep resumes it
        else:
            finished = self.folds[: len(attempt.costs) + 1]
            metrics = read_json(attempt.run.metrics_file, "per_fold", "cost")
            name = metrics["cost"]
            self.study.set_user_attr("cost", name)
            # Reread all of them: the first fold was not calibrated while it was the only one.
            attempt.costs = [metrics["per_fold"][str(fold)]["cost"] for fold in finished]
            trial.report(attempt.mean, len(attempt.costs) - 1)
            if len(attempt.costs) == len(self.folds):
                say(f"trial {trial.number}: {name} {attempt.mean:.4f}")
                self._close(attempt, TrialState.COMPLETE)
            elif trial.should_prune():
                say(f"trial {trial.number}: {name} {attempt.mean:.4f} after fold {finished[-1]}, stopped early")
                self._close(attempt, TrialState.PRUNED)
            else:
                self.ready.append(attempt)

    def _close(self, attempt: _Attempt, state: TrialState) -> None:
        """Tells the study and deletes the run: a hundred trials' networks would fill the disk."""
        self.study.tell(attempt.trial, attempt.mean if state == TrialState.COMPLETE else None, state)
        shutil.rmtree(attempt.run.folder)


def _suggest(trial: Trial, name: str, part: Any) -> Any:
    if isinstance(part, list):
        return trial.suggest_categorical(name, part)
    low, high, log = part["low"], part["high"], bool(part.get("log"))
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)


def _show(study: optuna.Study, folder: Path) -> dict[str, Any]:
    """Prints the best trials and which settings mattered; returns the settings of the best trial."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if not complete:
        raise UserError(f"{folder}: no trial was completed; see the messages above, or change the search space")
    best = sorted(complete, key=lambda trial: trial.value or 0.0)
    names = list(best[0].params)
    rows = [(t.number, f"{t.value:.4f}", *(_shown(t.params[name]) for name in names)) for t in best[:SHOWN]]
    print_table(["trial", study.user_attrs["cost"], *names], rows)
    say(f"{len(complete)} trials were completed, {len(_done(study)) - len(complete)} stopped early")
    if len({trial.value for trial in complete}) > 1:
        importances = get_param_importances(study)
        say("what mattered: " + ", ".join(f"{name} {share:.0%}" for name, share in importances.items()))
    return best[0].params


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
