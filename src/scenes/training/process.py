"""A Python process that this one starts: it can be stopped with all it started, and is never left behind.

Imports nothing heavy, since whatever starts processes on a cluster's machines does.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import IO

from scenes.files import make_folder

POLL_SECONDS = 0.2
MISTAKE, OUT_OF_TIME, INTERRUPTED = 2, 3, 130  # exit codes of the scripts, see `scenes.console.run`
LIFELINE = "SCENES_LIFELINE"


class Process:
    """A Python process in a session of its own, so that Ctrl-C reaches it only through this one.

    Its standard input is a pipe that nothing is ever written to: the pipe ends with this process, whatever ends it, and
    `end_with_parent` notices.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, output: int | IO[bytes]
    ) -> None:
        """Starts it.

        Args:
            arguments: What follows ``python``.
            environment: What is added to this process's environment.
            folder: Where it works.
            output: Where it prints to, errors too: a file, or ``subprocess.PIPE``.
        """
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, LIFELINE: "1", "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid, self.output = self._process.pid, self._process.stdout

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that killed it; None while it runs."""
        return self._process.poll()

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return self._process.wait()

    def ask_to_stop(self) -> None:
        """Lets it save and end, if it runs."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends it and all it started, as far as they run."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


@dataclass(frozen=True, eq=False)
class Task:
    """What one process is to do.

    Attributes:
        label: What it is called on the screen.
        log_file: Where it prints to, below what earlier ones printed.
        arguments: What follows ``python``.
        settings: Its ``--set``.
        until: When it has to stop, in Unix time.
    """

    label: str
    log_file: Path
    arguments: Sequence[str]
    settings: Sequence[str] = ()
    until: float = inf

    def command(self) -> list[str]:
        """What follows ``python``, if it is started now."""
        settings = list(self.settings)
        if self.until < inf:
            settings.append(f"train.time_budget_minutes={max(1e-3, (self.until - time.time()) / 60):.3f}")
        return [*self.arguments, "--set", *settings] if settings else list(self.arguments)

    def start(self, folder: Path, environment: Mapping[str, str], where: str) -> Process:
        """Starts the process, in a folder below which its log is."""
        self.log(f"on {where}", folder)
        with (folder / self.log_file).open("ab") as log:
            return Process(self.command(), environment, folder, log)

    def log(self, line: str, folder: Path = Path()) -> None:
        """Adds a line to the log."""
        file = folder / self.log_file
        make_folder(file.parent)
        with file.open("a", encoding="utf-8") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {self.label} {line}\n")


def end_with_parent() -> None:
    """Lets this process save and stop as soon as the one that started it, as a `Process`, is gone."""
    if os.environ.pop(LIFELINE, None):
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()


def _stop_at_end_of_input() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def gpu_count() -> int:
    """How many GPUs this process sees."""
    import torch

    return torch.cuda.device_count()


def only_gpu(gpu: int) -> dict[str, str]:
    """The environment in which a process sees one of the GPUs that this one sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": str(gpu) if visible is None else visible.split(",")[gpu].strip()}
