"""Runs commands side by side, each in a child process on a GPU, a share of the cores or a Ray cluster.

A child prints to its task's log file, which `run_tasks` reads and shows, so its output survives this process. This
module imports nothing heavy, because a child calls `end_with_parent` first thing.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Protocol

from scenes.console import Problem, UserError, say
from scenes.environment import ROOT, usable_cores
from scenes.files import make_folder
from scenes.script import StopRequest

POLL_SECONDS = 0.2
LAST_LINES = 6  # of a failed task's log, shown in the message
OUT_OF_TIME, INTERRUPTED = 3, 130  # exit codes of the scripts, see `scenes.script.run`
LIFELINE = "SCENES_LIFELINE"


@dataclass(frozen=True, eq=False)
class Task:
    """A command to run.

    Attributes:
        label: Its name on the screen.
        log_file: The file it prints to; the output of earlier attempts is kept.
        arguments: The arguments after ``python``.
        settings: The values of its ``--set``.
        until: When it has to stop, in Unix time; passed on as ``train.time_budget_minutes``.
    """

    label: str
    log_file: Path
    arguments: Sequence[str]
    settings: Sequence[str] = ()
    until: float = inf

    def command(self) -> list[str]:
        """The arguments after ``python`` if the task starts now."""
        settings = list(self.settings)
        if self.until < inf:
            settings.append(f"train.time_budget_minutes={max(1e-3, (self.until - time.time()) / 60):.3f}")
        return [*self.arguments, "--set", *settings] if settings else list(self.arguments)

    def log(self, line: str, folder: Path = Path()) -> None:
        """Adds a line to the log."""
        file = folder / self.log_file
        make_folder(file.parent)
        with file.open("a", encoding="utf-8") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {self.label} {line}\n")


class Running(Protocol):
    """A running task."""

    def poll(self) -> int | None:
        """The exit code, negative for the signal that killed it; None while it runs."""

    def ask_to_stop(self) -> None:
        """Asks it to save its state and exit."""

    def kill(self) -> None:
        """Kills it at once."""


class Child:
    """A task's process on this machine.

    It has its own session, so Ctrl-C reaches it only through this process. Its standard input is a pipe that is never
    written to and closes when this process ends, for whatever reason: see `end_with_parent`.
    """

    def __init__(self, task: Task, environment: Mapping[str, str], where: str, folder: Path = Path()) -> None:
        """Starts it.

        Args:
            task: The command and its log.
            environment: Variables to add to this process's environment.
            where: The name in the log of the place where it runs.
            folder: Its working folder, to which the log file is relative.
        """
        task.log(f"on {where}", folder)
        path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
        with (folder / task.log_file).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *task.command()],
                cwd=folder,
                env={**os.environ, LIFELINE: "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": path, **environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for the signal that killed it; None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Waits for it to exit; returns the exit code."""
        return self._process.wait()

    def ask_to_stop(self) -> None:
        """Asks it to save its state and exit."""
        self._process.terminate()

    def kill(self) -> None:
        """Kills it and everything it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


@dataclass(frozen=True, eq=False)
class Slot:
    """A place that runs one task at a time: a GPU and a share of the cores, the cores alone, or a share of a cluster.

    Attributes:
        name: Its name on the screen.
        environment: Variables that its processes get in addition to this process's environment.
        cores: The cores of this machine that they may use; all if empty.
        on_ray: What each of them requests from a Ray cluster, ``num_gpus`` and ``num_cpus``; None for this machine.
    """

    name: str
    environment: Mapping[str, str]
    cores: Sequence[int] = ()
    on_ray: Mapping[str, int] | None = None

    def start(self, task: Task) -> Running:
        """Starts a task, which prints to its log."""
        if self.on_ray is not None:
            from scenes.training.ray_tasks import RayTask

            return RayTask(task, self.on_ray, self.environment)
        child = Child(task, self.environment, self.name)
        if self.cores and sys.platform == "linux":
            os.sched_setaffinity(child.pid, self.cores)  # before it has any threads
        return child


def end_with_parent() -> None:
    """Makes this process save its state and stop when the parent that started it as a `Child` exits."""

    def wait_for_end_of_input() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.pop(LIFELINE, None):
        threading.Thread(target=wait_for_end_of_input, daemon=True).start()


def gpu_count() -> int:
    """How many GPUs this process sees."""
    import torch

    return torch.cuda.device_count()


def make_slots(parallel: str | None, tasks: int, address: str | None = None) -> Sequence[Slot]:
    """Makes the slots that ``--parallel`` and ``--ray-address`` ask for.

    Returns:
        At most `tasks` slots; none if this process should run the tasks itself, one after another.

    Raises:
        UserError: If the options contradict each other, or Ray is not installed or does not answer.
    """
    if address and parallel != "ray":
        raise UserError("--ray-address works only with --parallel ray")
    if parallel is None:
        return []
    if "LOCAL_RANK" in os.environ:
        raise UserError("--parallel starts its own processes: do not combine it with torchrun or accelerate launch")
    if parallel == "ray":
        from scenes.training.ray_tasks import ray_slots

        return ray_slots(tasks, address)
    gpus = gpu_count()
    if parallel == "auto":
        if gpus < 2:
            why = "one GPU" if gpus else "no GPU, and one process with all cores is as fast as several"
            say(f"--parallel auto: {why}; training one fold after another")
        count = max(1, gpus)
    elif re.fullmatch(r"[1-9]\d{0,3}", parallel, re.ASCII):
        count = int(parallel)
    else:
        raise UserError(f"--parallel takes a number, auto (one process per GPU) or ray; got {parallel!r}")
    count = min(count, tasks)
    return local_slots(count, gpus) if count > 1 else []


def local_slots(count: int, gpus: int) -> list[Slot]:
    """Divides this machine into slots: GPUs round-robin, cores evenly.

    All slots have the same number of threads, because on a CPU the last digits of a result depend on it.
    """
    cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(usable_cores()))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(len(cores) // count or 1))} if count > 1 else {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(gpu) for gpu in range(gpus)] if visible is None else [name.strip() for name in visible.split(",")]
    slots = []
    for i in range(count):
        share = cores[i * len(cores) // count : (i + 1) * len(cores) // count] or [cores[i % len(cores)]]
        gpu = {"CUDA_VISIBLE_DEVICES": names[i % gpus]} if gpus else {}
        name = f"GPU {i % gpus}" if gpus else f"cores {share[0]}-{share[-1]}"
        slots.append(Slot(name, {**gpu, **threads}, share))
    return slots


def failure(task: Task, code: int, lines: Sequence[str]) -> Problem:
    """Describes a failed task, with the end of its log."""
    how = f"was killed by signal {-code}" if code < 0 else f"failed with exit code {code}"
    remedy = "if it ran out of memory, run fewer at a time" if code < 0 else "fix this"
    shown = "".join(f"\n      | {line}" for line in lines)
    return Problem(task.label, f"{how}; {task.log_file} ends:{shown}", f"{remedy}; the same command resumes")


def run_tasks(
    slots: Sequence[Slot],
    next_task: Callable[[Slot], Task | None],
    ended: Callable[[Task, int, Sequence[str]], None],
    is_over: Callable[[], bool] = lambda: False,
) -> bool:
    """Runs tasks in the slots until none are left or running; prints their output.

    The first Ctrl-C or SIGTERM is passed on, so that all tasks save their state and exit; a second one kills them.

    Args:
        slots: Where tasks run.
        next_task: Returns the next task for a free slot, or None if there is none at the moment.
        ended: Called with each task that ended, its exit code and the last lines of its log; may create new tasks.
        is_over: Polled repeatedly; once it returns True, all running tasks are killed.

    Returns:
        Whether a signal interrupted it.
    """
    active: dict[Slot, _ActiveTask] = {}
    stop_was_sent = False
    with StopRequest(inf) as stop:
        try:
            while not is_over():
                for slot in slots:
                    if slot not in active and not stop.signalled and (task := next_task(slot)):
                        active[slot] = _ActiveTask(task, slot)
                if not active:
                    break
                if stop.signalled and not stop_was_sent:
                    stop_was_sent = True
                    for each in active.values():
                        each.running.ask_to_stop()
                for slot, each in list(active.items()):
                    code = each.running.poll()  # before reading the log, so that it is complete once the task has ended
                    each.show_new_lines()
                    if code is not None:
                        del active[slot]
                        if code and each.task.label:
                            say(f"{each.task.label}: exit code {code}; its log: {each.task.log_file}")
                        ended(each.task, INTERRUPTED if code and stop_was_sent else code, each.last_lines)
                time.sleep(POLL_SECONDS)
        except BaseException as error:  # a second signal kills the tasks; on any other error they save and exit
            for each in active.values():
                each.running.kill() if isinstance(error, KeyboardInterrupt) else each.running.ask_to_stop()
            raise
        for each in active.values():
            each.running.kill()
        return stop.signalled


class _ActiveTask:
    """A running task, and how far its log has been read."""

    def __init__(self, task: Task, slot: Slot) -> None:
        self.task, self.last_lines = task, deque[str](maxlen=LAST_LINES)
        self._position = task.log_file.stat().st_size if task.log_file.exists() else 0
        self.running = slot.start(task)

    def show_new_lines(self) -> None:
        """Prints the whole lines added to the log since the last call, each prefixed with the task's label."""
        with self.task.log_file.open("rb") as file:
            file.seek(self._position)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in filter(str.strip, whole.decode(errors="replace").splitlines()):
            self.last_lines.append(line.rstrip())
            say(f"[{self.task.label}] {line.rstrip()}" if self.task.label else line.rstrip())
