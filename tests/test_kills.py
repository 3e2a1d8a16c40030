"""SIGKILL at seeded moments: afterwards the same command ends in the same bytes as an uninterrupted run.

Half the kills strike just before or just after a file operation, where a half-written state would show; the other
half strike by the clock. Both are spread over the whole run.
`SCENES_KILLS=200 python -m pytest tests/test_kills.py` does 200.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scenes.inference.submit
import scenes.training.crossval  # noqa: F401 - loaded here once, not in each of the many children
import train
from processes import exit_code, fork
from tiny import TINY, make_workspace, results

KILLS = int(os.environ.get("SCENES_KILLS", "16"))
COMMAND = ["tiny.yaml", "--submit", "--set", *TINY, "train.batch_size=24", "train.average_epochs=2"]
# A checkpoint after every step, so that kills can hit many file operations.
COMMAND += ["train.checkpoint_minutes=1e-9"]
OPERATIONS = ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "mkdir"), (np, "savez"))


def count_operations(folder: Path) -> int:
    """Runs the command undisturbed in a child; returns how many file operations it did."""
    reader, writer = os.pipe()

    def work() -> None:
        done = strike_at(None)
        train.main(COMMAND)
        os.write(writer, str(len(done)).encode())

    assert exit_code(start(folder, work)) == 0
    return int(os.read(reader, 20))


def strike_at(number: int | None, after: bool = False) -> list[None]:
    """Makes this process kill itself at its n-th file operation; the returned list grows with each operation."""
    done: list[None] = []

    def wrap(operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            strikes = len(done) == number
            done.append(None)
            if strikes and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return operation(*args, **kwargs)
            finally:
                if strikes:
                    os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    for module, name in OPERATIONS:
        setattr(module, name, wrap(getattr(module, name)))
    return done


def start(folder: Path, work: Callable[[], object]) -> int:
    """Does some work in a folder, in a child process; returns its process number."""

    def there() -> None:
        os.chdir(folder)
        work()

    return fork(there, folder / "log.txt")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> tuple[dict[str, bytes], int, float]:
    """An undisturbed run's files, its number of file operations and its seconds."""
    folder = make_workspace(tmp_path_factory.mktemp("reference"), sample)
    begun = time.monotonic()
    operations = count_operations(folder)
    return results(folder), operations, time.monotonic() - begun


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_resumes_to_the_same_bytes(
    number: int, reference: tuple[dict[str, bytes], int, float], sample: Path, tmp_path: Path
) -> None:
    expected, operations, seconds = reference
    assert len(expected) == 8
    folder = make_workspace(tmp_path, sample)
    draw = np.random.default_rng(number)
    when = (number // 2 + draw.random()) / -(-KILLS // 2)  # 0 … 1, the share of the run that is finished
    if number % 2:
        child = start(folder, lambda: train.main(COMMAND))
        time.sleep(when * seconds)
        os.kill(child, signal.SIGKILL)
    else:
        strike, after = int(when * operations), bool(draw.integers(2))
        child = start(folder, lambda: (strike_at(strike, after), train.main(COMMAND)))
    killed = exit_code(child) == -signal.SIGKILL
    assert killed or number % 2, f"{strike} of {operations}"  # a kill by the clock may come too late
    assert exit_code(start(folder, lambda: train.main(COMMAND))) == 0, (folder / "log.txt").read_text()
    assert results(folder) == expected
    assert not list(folder.rglob("*.tmp")), "left-overs of writes"
