"""Folds at the same time: each is ``train.py --folds K`` in a process of its own, on a GPU or a share of the cores."""

import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Protocol

import torch

from scenes.config import Config
from scenes.console import Problem, StoppedError, StopRequest, UserError, raise_problems, say
from scenes.data.folds import fold_name, folds_text
from scenes.environment import ROOT
from scenes.runs import RUNS, Run
from scenes.training.crossval import open_run
from scenes.training.process import INTERRUPTED, OUT_OF_TIME, POLL_SECONDS, Process, Task, gpu_count, only_gpu

LAST_LINES = 6
FAILED = "Not all could be trained; all else is done"


@dataclass(frozen=True, eq=False)
class Experiment:
    """What train.py is asked to train.

    Attributes:
        config_file: As the command line names it.
        settings: Its ``--set``.
        config: What both of them make.
        folds: Which folds.
    """

    config_file: Path
    settings: Sequence[str]
    config: Config
    folds: Sequence[int]

    @property
    def run(self) -> Run:
        """Where it is trained."""
        return Run(RUNS / self.config.name)

    @property
    def is_finished(self) -> bool:
        """Whether no fold is left to train."""
        return all(self.run.is_finished(fold) for fold in self.folds)

    def task(self, fold: int, label: str, *options: str, until: float = inf) -> Task:
        """The training of one fold, in a process of its own."""
        arguments = (str(ROOT / "src/train.py"), str(self.config_file), "--folds", folds_text([fold]), *options)
        return Task(label, self.run.fold_folder(fold) / "log.txt", arguments, self.settings, until)


class Running(Protocol):
    """A task at work."""

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that killed it; None while it runs."""

    def ask_to_stop(self) -> None:
        """Lets it save and end."""

    def kill(self) -> None:
        """Ends it at once."""


class Slot(Protocol):
    """Room for one task at a time."""

    @property
    def name(self) -> str:
        """What it is, for the screen."""

    def start(self, task: Task) -> Running:
        """Sets a task to work, its output going to its log."""


@dataclass(frozen=True, eq=False)
class LocalSlot:
    """A GPU and a share of the cores, or the share alone."""

    name: str
    cores: Sequence[int]
    environment: Mapping[str, str]

    def start(self, task: Task) -> Process:
        """Starts a process that sees this slot alone."""
        process = task.start(Path.cwd(), self.environment, self.name)
        if sys.platform == "linux":
            os.sched_setaffinity(process.pid, self.cores)  # long before it has any threads
        return process


def make_slots(parallel: str | None, tasks: int, address: str | None = None) -> Sequence[Slot]:
    """Finds room for so many tasks; what ``--parallel`` and ``--ray-address`` ask for.

    The cores a slot has follow from the command and the machine alone, since on a CPU the number of threads decides
    about the last digits.

    Returns:
        The slots; none where this process had better do one task after another itself.

    Raises:
        UserError: If the options make no sense, or Ray is missing or does not answer.
    """
    if address and parallel != "ray":
        raise UserError("--ray-address goes with --parallel ray")
    if parallel is None:
        return []
    if "LOCAL_RANK" in os.environ:
        raise UserError("--parallel starts processes for whole folds: leave out torchrun and accelerate launch, or it")
    if parallel == "ray":
        from scenes.training.ray_slots import ray_slots

        return ray_slots(tasks, address)
    gpus = gpu_count()
    if parallel == "auto":
        if gpus < 2:
            why = "one GPU" if gpus else "no GPU, and one process with all cores is as fast as several"
            say(f"--parallel auto: {why}: one fold after another")
        count = max(1, gpus)
    elif re.fullmatch(r"[1-9]\d{0,3}", parallel, re.ASCII):
        count = int(parallel)
    else:
        raise UserError(f"--parallel takes a number, auto (one a GPU) or ray; got {parallel!r}")
    count = min(count, tasks)
    return list(_local_slots(count, gpus)) if count > 1 else []


def _local_slots(count: int, gpus: int) -> Iterator[LocalSlot]:
    """Shares out GPUs, round robin, and cores."""
    cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, len(cores) // count)))
    for i in range(count):
        share = cores[i * len(cores) // count : (i + 1) * len(cores) // count] or [cores[i % len(cores)]]
        gpu = only_gpu(i % gpus) if gpus else {}
        name = f"GPU {i % gpus}" if gpus else f"cores {share[0]}-{share[-1]}"
        yield LocalSlot(name, share, {**gpu, "OMP_NUM_THREADS": threads})


def train_folds(
    experiments: Sequence[Experiment], slots: Sequence[Slot], conclude: Callable[[Experiment], object]
) -> None:
    """Trains the folds that are not finished; one that fails leaves the others alone.

    Args:
        experiments: What to train.
        slots: Where.
        conclude: Called for each experiment whose folds are all finished then; `cross_validate` finds nothing to train.

    Raises:
        UserError: If the data or a config cannot be used; or with each fold that failed and the end of its log.
        StoppedError: If a signal or the time budget stopped it, all saved.
    """
    tasks = deque(_prepare(experiments))
    codes: list[int] = []
    failures: list[Problem] = []

    def next_task() -> Task | None:
        while tasks and tasks[0].until <= time.time():
            tasks.popleft()
            codes.append(OUT_OF_TIME)
        return tasks.popleft() if tasks else None

    def ended(task: Task, code: int, lines: Sequence[str]) -> None:
        codes.append(code)
        if code not in (0, OUT_OF_TIME, INTERRUPTED):
            failures.append(failure(task, code, lines))

    is_interrupted = follow(slots, next_task, ended)
    if INTERRUPTED in codes or (is_interrupted and tasks):
        raise StoppedError("interrupted", INTERRUPTED)
    for experiment in experiments:
        if experiment.is_finished:
            conclude(experiment)
    raise_problems(failures, FAILED)
    if OUT_OF_TIME in codes:
        raise StoppedError("the time budget is used up", OUT_OF_TIME)


def _prepare(experiments: Sequence[Experiment]) -> Iterator[Task]:
    """Opens the runs and lists the folds to train: what is wrong shows once, and processes find all in the cache."""
    start = time.time()
    for experiment in experiments:
        job, run = open_run(experiment.config, experiment.folds)
        left = [fold for fold in experiment.folds if not run.is_finished(fold)]
        if left:
            job.compute_features()  # here with all cores, else one process would let the others wait
        until = start + 60 * (experiment.config.train.time_budget_minutes or inf)
        prefix = f"{run.name} " if len(experiments) > 1 else ""
        yield from (experiment.task(fold, prefix + fold_name(fold), "--train-only", until=until) for fold in left)
    del job
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the GPU is the processes'


def failure(task: Task, code: int, lines: Sequence[str]) -> Problem:
    """What is said of a task that failed."""
    how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
    remedy = "if memory ran out, train fewer folds at a time" if code < 0 else "mend that"
    shown = "".join(f"\n      | {line}" for line in lines)
    return Problem(task.label, f"{how}; {task.log_file} ends:{shown}", f"{remedy}; the same command goes on")


@dataclass
class _Work:
    """A task at work, and how much of its log was read."""

    task: Task
    slot: Slot
    begun: float = field(default_factory=time.monotonic)
    last: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))

    def __post_init__(self) -> None:
        log = self.task.log_file
        self._position = log.stat().st_size if log.exists() else 0
        self.running = self.slot.start(self.task)

    def new_lines(self) -> list[str]:
        """What was added to the log since the last call, whole lines only."""
        with self.task.log_file.open("rb") as file:
            file.seek(self._position)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._position += len(whole)
        lines = [line.rstrip() for line in whole.decode(errors="replace").splitlines() if line.strip()]
        self.last.extend(lines)
        return lines

    @property
    def minutes(self) -> str:
        """How long it has been at work."""
        return f"{(time.monotonic() - self.begun) / 60:.1f} min"


def follow(
    slots: Sequence[Slot],
    next_task: Callable[[], Task | None],
    ended: Callable[[Task, int, Sequence[str]], None],
) -> bool:
    """Keeps the slots at work until nothing is left to do and nothing runs.

    The first Ctrl-C or SIGTERM is passed on, and what runs saves and ends; a second one kills it.

    Args:
        slots: Where tasks run.
        next_task: Gives the next one, or None if there is none at the moment.
        ended: Takes each task that ended, its exit code and the last lines of its log; there may be new tasks then.

    Returns:
        Whether it was interrupted.
    """
    works: dict[Slot, _Work] = {}
    is_told = False
    with StopRequest(inf) as stop, _Board() as board:
        try:
            while True:
                for slot in slots:
                    if slot not in works and not stop.signalled and (task := next_task()):
                        works[slot] = _Work(task, slot)
                if not works:
                    return stop.signalled
                if stop.signalled and not is_told:
                    is_told = True
                    for work in works.values():
                        work.running.ask_to_stop()
                for slot, work in list(works.items()):
                    code = work.running.poll()  # asked first: what ended has printed all
                    board.lines(work.task.label, work.new_lines())
                    if code is not None:
                        code = INTERRUPTED if code and is_told else code
                        del works[slot]
                        how = f"ended with {code} after {work.minutes}: {work.task.log_file}"
                        say(f"{work.task.label}: {how if code else f'done after {work.minutes}'}")
                        ended(work.task, code, work.last)
                board.show(works.values())
                time.sleep(POLL_SECONDS)
        except BaseException as error:  # a second signal does not wait; after any other error all save and end
            for work in works.values():
                work.running.kill() if isinstance(error, KeyboardInterrupt) else work.running.ask_to_stop()
            raise


class _Board:
    """What is at work: a table on a terminal; elsewhere all lines, each after its task's label."""

    def __enter__(self) -> "_Board":
        self._live = None
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(transient=True, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def lines(self, label: str, lines: Sequence[str]) -> None:
        """Passes on what a task printed, where there is no table."""
        for line in lines if not self._live else ():
            say(f"[{label}] {line}")

    def show(self, works: Iterable[_Work]) -> None:
        """Draws the table anew."""
        if not self._live:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD)
        for name in ("fold", "on", "since"):
            table.add_column(name, no_wrap=True)
        table.add_column(Text("last line of its log", no_wrap=True), overflow="ellipsis")  # gives way to the others
        for work in works:
            line = work.last[-1].strip() if work.last else ""
            table.add_row(*map(Text, (work.task.label, work.slot.name, work.minutes)), Text(line, no_wrap=True))
        self._live.update(table)
