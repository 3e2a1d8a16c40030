"""Trains the folds of several experiments side by side."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch

from scenes.config import Config
from scenes.console import Problem, StoppedError, raise_problems
from scenes.environment import ROOT
from scenes.runs import RUNS, Run, fold_name, folds_text
from scenes.training.crossval import open_run
from scenes.training.workers import INTERRUPTED, OUT_OF_TIME, Slot, Task, failure, run_tasks

FAILED = "Some folds could not be trained; all others are done"


@dataclass(frozen=True, eq=False)
class Experiment:
    """An experiment that train.py was asked to train.

    Attributes:
        config_file: The path given on the command line.
        settings: The values of ``--set``.
        config: The config that results from both.
        folds: Which folds to train.
    """

    config_file: Path
    settings: Sequence[str]
    config: Config
    folds: Sequence[int]

    @property
    def run(self) -> Run:
        """The run it trains."""
        return Run(RUNS / self.config.name)

    @property
    def is_finished(self) -> bool:
        """Whether all of its folds are trained."""
        return all(self.run.is_finished(fold) for fold in self.folds)

    def train_fold(self, fold: int, label: str, until: float = inf) -> Task:
        """The task that trains one fold and writes no scores."""
        script = str(ROOT / "src/train.py")
        arguments = (script, str(self.config_file), "--folds", folds_text([fold]), "--train-only")
        return Task(label, self.run.fold_folder(fold) / "log.txt", arguments, self.settings, until)


def train_folds(
    experiments: Sequence[Experiment], slots: Sequence[Slot], conclude: Callable[[Experiment], object]
) -> None:
    """Trains the unfinished folds; one that fails does not affect the others.

    Args:
        experiments: What to train.
        slots: Where to train it.
        conclude: Called at the end for each experiment whose folds are all finished.

    Raises:
        UserError: If the data or a config cannot be used; or with each failed fold and the end of its log.
        StoppedError: If a signal or the time budget stopped it; everything is saved.
    """
    tasks = deque(_prepare(experiments))
    codes: list[int] = []
    failures: list[Problem] = []

    def next_task(_: Slot) -> Task | None:
        while tasks and tasks[0].until <= time.time():
            tasks.popleft()
            codes.append(OUT_OF_TIME)
        return tasks.popleft() if tasks else None

    def ended(task: Task, code: int, lines: Sequence[str]) -> None:
        codes.append(code)
        if code not in (0, OUT_OF_TIME, INTERRUPTED):
            failures.append(failure(task, code, lines))

    is_interrupted = run_tasks(slots, next_task, ended)
    if INTERRUPTED in codes or (is_interrupted and tasks):
        raise StoppedError("interrupted", INTERRUPTED)
    for experiment in experiments:
        if experiment.is_finished:
            conclude(experiment)
    raise_problems(failures, FAILED)
    if OUT_OF_TIME in codes:
        raise StoppedError("the time budget is used up", OUT_OF_TIME)


def _prepare(experiments: Sequence[Experiment]) -> Iterator[Task]:
    """Checks the data, fills the caches and yields the folds to train, so that a data error is reported only once."""
    start = time.time()
    for experiment in experiments:
        job, run = open_run(experiment.config, experiment.folds)
        left = [fold for fold in experiment.folds if not run.is_finished(fold)]
        if left:
            job.compute_features()  # here, with all cores, rather than in one process while others wait
        until = start + 60 * (experiment.config.train.time_budget_minutes or inf)
        prefix = f"{run.name} " if len(experiments) > 1 else ""
        yield from (experiment.train_fold(fold, prefix + fold_name(fold), until) for fold in left)
    del job
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the children need the memory
