"""A search for better settings: Optuna proposes, two folds judge, bad trials stop early."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, Trial, TrialState

from scenes import plain_yaml
from scenes.config import Config, dump, load_config
from scenes.console import Problem, StoppedError, UserError, print_table, raise_problems, say
from scenes.data.folds import fold_name
from scenes.files import only_process, write_result
from scenes.randomness import key
from scenes.runs import RUNS, read_json
from scenes.training.crossval import cross_validate
from scenes.training.job import prepare
from scenes.training.parallel import FAILED, Experiment, Slot, failure, follow
from scenes.training.process import INTERRUPTED, MISTAKE, Task

SHOWN = 5
RANGE_KEYS = {"low", "high", "log"}

Space = Mapping[str, Any]


def sweep(
    config_file: Path,
    overrides: Sequence[str],
    space_file: Path,
    trials: int,
    folds: Sequence[int],
    slots: Sequence[Slot] = (),
) -> Path:
    """Searches a space for the settings with the lowest held-out log loss; a sweep that was stopped goes on.

    Args:
        config_file: The experiment to better.
        overrides: ``key=value`` strings, as in train.py.
        space_file: What to search, see configs/sweeps/.
        trials: How many there shall be in all.
        folds: Which folds judge a trial.
        slots: Where trials run at the same time; by default one after another in this process.

    Returns:
        The best config's file.

    Raises:
        UserError: If the space or a config cannot be used, another process is at it, or no trial came to an end.
        StoppedError: If a signal stopped it.
    """
    base = load_config(config_file, overrides)
    space = read_space(space_file)
    for number in (0, -1):  # both ends of every range; what is wrong is known before the first trial
        ends = {
            name: part[number] if isinstance(part, list) else part["low" if number == 0 else "high"]
            for name, part in space.items()
        }
        prepare(_configure(config_file, overrides, ends), folds)
    folder = RUNS / f"{base.name}.sweep"
    with only_process(folder, "at this sweep"):  # two would take each other's trials for interrupted ones
        study = _open(folder, base, space, folds)
        _enqueue_interrupted(study)
        left = trials - len(_done(study))
        if left > 0:
            listed = ", ".join(map(str, folds))
            say(f"{folder}: {left} trials to go, folds {listed}; the same command goes on after a stop")
            search = _Search(study, config_file, overrides, space, folds)
            search.in_parallel(left, slots) if slots else study.optimize(search.judge, left)
        return _conclude(study, folder, config_file, overrides)


def read_space(path: Path) -> dict[str, Any]:
    """Reads what to search: ``key: [choices]`` or ``key: {low: …, high: …, log: true}``.

    Raises:
        UserError: If it is anything else.
    """
    try:
        space = plain_yaml.parse(path.read_text(encoding="utf-8-sig"), str(path)).values
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable YAML file ({error}); see configs/sweeps/finetune.yaml") from None
    if not isinstance(space, dict) or not space:
        raise UserError(f"{path}: a space is made of `key: [choices]` and `key: {{low: …, high: …}}` lines")
    for name, part in space.items():
        if isinstance(part, list) and part and all(isinstance(choice, bool | int | float | str) for choice in part):
            continue
        if not isinstance(part, dict) or not {"low", "high"} <= set(part) <= RANGE_KEYS:
            raise UserError(f"{path}: {name}: write a list of plain choices, or {{low: …, high: …, log: true}}")
        low, high = part["low"], part["high"]
        if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)) or low >= high:
            raise UserError(f"{path}: {name}: low and high are numbers, low the smaller one")
        if part.get("log") and low <= 0:
            raise UserError(f"{path}: {name}: a logarithmic range begins above 0")
    return space


def _configure(config_file: Path, overrides: Sequence[str], values: Mapping[str, Any], suffix: str = "") -> Config:
    """The experiment with a trial's values, under the trial's name."""
    return load_config(config_file, _settings(config_file, overrides, values, suffix))


def _settings(config_file: Path, overrides: Sequence[str], values: Mapping[str, Any], suffix: str) -> list[str]:
    """What ``--set`` makes a trial of the experiment."""
    pairs = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return [*overrides, *pairs, f"name={load_config(config_file, overrides).name}{suffix}"]


def _open(folder: Path, base: Config, space: Space, folds: Sequence[int]) -> optuna.Study:
    """Opens the study in the folder's SQLite file; refuses one that began otherwise."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{(folder / 'study.db').resolve()}"
    study = optuna.create_study(storage=storage, study_name=base.name, load_if_exists=True)
    # A sampler that began with the same seed after a stop would propose the same trials again.
    study.sampler = optuna.samplers.TPESampler(seed=key("sweep", base.seed, len(study.trials)) % 2**32)
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=4)
    begun = {"config": dump(base), "space": json.dumps(space), "folds": list(folds)}
    for name, value in begun.items():
        if study.user_attrs.get(name, value) != value:
            raise UserError(
                f"{folder}: this sweep began with another {name}; restore it, or give this one a name: --set name=NEW"
            )
        study.set_user_attr(name, value)
    return study


def _done(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _enqueue_interrupted(study: optuna.Study) -> None:
    """Lets trials that a kill or an error cut off come first; their runs go on from their checkpoints."""
    waiting = [trial.params for trial in [*_done(study), *study.get_trials(states=(TrialState.WAITING,))]]
    for trial in study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL)):
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.params and trial.params not in waiting:
            study.enqueue_trial(trial.params)
            waiting.append(trial.params)


@dataclass
class _Attempt:
    """A trial, what it trains, and its folds' log losses so far."""

    trial: Trial
    experiment: Experiment
    losses: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)

    @property
    def next_fold(self) -> int:
        return self.experiment.folds[len(self.losses)]

    @property
    def is_judged(self) -> bool:
        return len(self.losses) == len(self.experiment.folds)

    def add_fold(self) -> None:
        """Takes the fold that was trained into account.

        Raises:
            optuna.TrialPruned: If the trial is not worth going on with.
        """
        fold = self.next_fold
        scores = read_json(self.experiment.run.metrics_file, "per_fold")["per_fold"]
        self.losses.append(scores[str(fold)]["log_loss"])
        self.trial.report(self.mean, len(self.losses) - 1)
        is_bad = not self.is_judged and self.trial.should_prune()
        if is_bad or self.is_judged:
            note = f" after fold {fold}, stopped early" if is_bad else ""
            say(f"trial {self.trial.number}: log loss {self.mean:.4f}{note}")
            shutil.rmtree(self.experiment.run.folder)  # its scores are in the study; a hundred networks fill the disk
        if is_bad:
            raise optuna.TrialPruned

    def give_up(self, why: object) -> None:
        """Ends a trial that cannot be trained, e.g. a rate at which the loss is no longer finite.

        Raises:
            optuna.TrialPruned: Always.
        """
        say(f"trial {self.trial.number} is given up: {why}")  # the data was checked before
        shutil.rmtree(self.experiment.run.folder)
        raise optuna.TrialPruned from None


@dataclass
class _Search:
    """How trials are made of what Optuna proposes, and judged."""

    study: optuna.Study
    config_file: Path
    overrides: Sequence[str]
    space: Space
    folds: Sequence[int]

    def begin(self, trial: Trial) -> _Attempt:
        """Draws a trial's values."""
        values = {name: _suggest(trial, name, part) for name, part in self.space.items()}
        say(f"trial {trial.number}: {', '.join(f'{name} {_shown(value)}' for name, value in values.items())}")
        # Named by the values: a trial that is tried again finds its run.
        suffix = f".trial-{key('trial', repr(sorted(values.items()))):016x}"
        settings = _settings(self.config_file, [*self.overrides, "report=false"], values, suffix)
        config = load_config(self.config_file, settings)
        return _Attempt(trial, Experiment(self.config_file, settings, config, self.folds))

    def judge(self, trial: Trial) -> float:
        """Trains a trial's folds one by one; its mean log loss."""
        attempt = self.begin(trial)
        while not attempt.is_judged:
            try:
                cross_validate(attempt.experiment.config, [attempt.next_fold])
            except UserError as error:
                attempt.give_up(error)
            attempt.add_fold()
        return attempt.mean

    def in_parallel(self, trials: int, slots: Sequence[Slot]) -> None:
        """Trains so many trials, one a slot at a time, each fold in a process of its own.

        Raises:
            UserError: With the folds that failed for another reason than their settings.
            StoppedError: If a signal stopped it.
        """
        at_work: dict[Task, _Attempt] = {}
        ready: list[_Attempt] = []
        failures: list[Problem] = []
        asked = 0

        def next_task() -> Task | None:
            nonlocal asked
            if not ready and asked < trials and not failures:
                asked += 1
                ready.append(self.begin(self.study.ask()))
            names = {attempt.experiment.config.name for attempt in at_work.values()}
            for attempt in ready:
                if attempt.experiment.config.name not in names:  # one of the same values waits: they share a run
                    ready.remove(attempt)
                    fold = attempt.next_fold
                    task = attempt.experiment.task(fold, f"trial {attempt.trial.number} {fold_name(fold)}")
                    at_work[task] = attempt
                    return task
            return None

        def ended(task: Task, code: int, lines: Sequence[str]) -> None:
            attempt = at_work.pop(task)
            if code not in (0, MISTAKE):  # the study keeps the trial as running: the next sweep goes on with it
                failures.append(failure(task, code, lines))
                return
            try:
                if code == MISTAKE:
                    attempt.give_up(" ".join(lines))
                attempt.add_fold()
            except optuna.TrialPruned:
                self.study.tell(attempt.trial, state=TrialState.PRUNED)
                return
            if attempt.is_judged:
                self.study.tell(attempt.trial, attempt.mean)
            else:
                ready.append(attempt)

        if follow(slots, next_task, ended):
            raise StoppedError("interrupted", INTERRUPTED)
        raise_problems(failures, FAILED)


def _suggest(trial: Trial, name: str, part: Any) -> Any:
    if isinstance(part, list):
        return trial.suggest_categorical(name, part)
    low, high, log = part["low"], part["high"], bool(part.get("log"))
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(name, low, high, log=log)
    return trial.suggest_float(name, low, high, log=log)


def _conclude(study: optuna.Study, folder: Path, config_file: Path, overrides: Sequence[str]) -> Path:
    """Prints the best trials and what mattered, writes the best config."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if not complete:
        raise UserError(f"{folder}: no trial came to an end; look at the messages above, or change the space")
    best = sorted(complete, key=lambda trial: trial.value or 0.0)
    names = list(best[0].params)
    rows = [(t.number, f"{t.value:.4f}", *(_shown(t.params[name]) for name in names)) for t in best[:SHOWN]]
    print_table(["trial", "log loss", *names], rows)
    say(f"{len(complete)} trials came to an end, {len(_done(study)) - len(complete)} were stopped early")
    if len({trial.value for trial in complete}) > 1:
        importances = get_param_importances(study)
        say("what mattered: " + ", ".join(f"{name} {share:.0%}" for name, share in importances.items()))
    path = folder / "best.yaml"
    write_result(path, dump(_configure(config_file, overrides, best[0].params, "_best")))
    return path


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
