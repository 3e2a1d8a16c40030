"""Processes that tests start, stop and wait for."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import train
from scenes.training.workers import Task


def fork(work: Callable[[], object], log: Path | str = "log.txt") -> int:
    """Does some work in a forked process, in which all modules are already loaded.

    Args:
        work: What to do; its SystemExit becomes the exit code.
        log: The file to which everything printed is appended.

    Returns:
        The child's process number.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = sys.stderr = os.fdopen(out, "w", buffering=1)
        work()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # so that nothing of pytest's runs twice


def exit_code(child: int) -> int:
    """Waits for a child; returns its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Stands in for train.py: locks its folder, prints that it has begun, ends on SIGTERM or with its parent.
STEADY = f"""
import sys, time
sys.path.insert(0, {str(Path(train.__file__).parent)!r})
from filelock import FileLock
from scenes.script import run
from scenes.training.workers import end_with_parent
def main():
    end_with_parent()
    with FileLock(sys.argv[1] + "/.lock", timeout=0):
        print("begun", flush=True)
        time.sleep(100)
run(main)
"""


def steady(name: str) -> Task:
    return Task(name, Path(name, "log.txt"), ["-c", STEADY, name])


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def logged(text: str, *names: str) -> Callable[[], bool]:
    """Tells whether all logs contain a text."""
    return lambda: all(log.exists() and text in log.read_text() for log in (Path(name, "log.txt") for name in names))


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Does something in a thread while its block runs."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
