"""Tasks on a Ray cluster: each runs as a child process on whichever machine has a free GPU or free cores."""

import os
import signal
import socket
import time
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

from scenes.console import UserError
from scenes.environment import ROOT
from scenes.ray_cluster import connect
from scenes.training.workers import INTERRUPTED, POLL_SECONDS, Child, Slot, Task

RETRIES = 3
NEEDS = "all machines need the repository on shared storage, at the same path, and the same Python and packages"
LOCK_SECONDS = 180.0  # how long to wait for the process of a lost attempt, which saves its state before it exits


class KilledError(Exception):
    """A signal, e.g. from the kernel's out-of-memory killer, ended a task's process; Ray retries the task."""


def ray_slots(tasks: int, address: str | None) -> list[Slot]:
    """Connects to Ray and makes a slot for each of its GPUs, or divides its cores if there are none.

    Without an address it uses the cluster that this machine belongs to, or else starts Ray on this machine alone.

    Raises:
        UserError: If Ray is not installed, or there is no cluster at the address.
    """
    machines = connect(address, "--parallel ray")
    with_gpus = [machine for machine in machines if machine.get("GPU")]
    if with_gpus:
        cores = int(min(machine["CPU"] // machine["GPU"] for machine in with_gpus))
        count = int(sum(machine["GPU"] for machine in with_gpus))
    else:
        tasks_per_machine = ceil(tasks / len(machines))
        cores = int(max(1, min(machine["CPU"] for machine in machines) // tasks_per_machine))
        count = int(sum(machine["CPU"] // cores for machine in machines))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores)))}
    needs = {"num_gpus": 1 if with_gpus else 0, "num_cpus": cores}
    return [Slot(f"Ray {i}", threads, on_ray=needs) for i in range(max(1, min(count, tasks)))]


class RayTask:
    """A task that Ray runs and retries if its machine or process is lost."""

    def __init__(self, task: Task, needs: Mapping[str, int], environment: Mapping[str, str]) -> None:
        """Submits it."""
        import ray

        marker = uuid4().hex
        task.log(f"submitted to Ray ({marker})")
        run: Any = ray.remote(_run_child).options(
            **needs,
            max_retries=RETRIES,
            retry_exceptions=[KilledError],
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "src")}},
        )
        self._task, self._reference = task, run.remote(task, Path.cwd(), marker, environment)

    def poll(self) -> int | None:
        """The process's exit code, or 1 if Ray has given up; None while it runs or waits."""
        import ray
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        if not ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            return ray.get(self._reference)
        except TaskCancelledError:
            return INTERRUPTED
        except RayError as error:
            first_line = str(error).partition("\n")[0]
            why = str(error.cause) if isinstance(error, RayTaskError) else f"{first_line}; {NEEDS}"
            self._task.log(f"was given up by Ray: {why}")
            return 1

    def ask_to_stop(self) -> None:
        """Asks it to save its state and exit."""
        import ray

        ray.cancel(self._reference)

    def kill(self) -> None:
        """Kills it at once."""
        import ray

        ray.cancel(self._reference, force=True)


def _run_child(task: Task, folder: Path, marker: str, environment: Mapping[str, str]) -> int:
    """Runs a task's process on the machine that Ray chose; returns its exit code."""
    log_file, here = folder / task.log_file, socket.gethostname()
    if not log_file.is_file() or marker not in log_file.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{folder} on {here} is not the folder that the command was started in; {NEEDS}")
    with FileLock(log_file.with_name(".lock"), timeout=LOCK_SECONDS):
        pass
    # Ray cancels with SIGINT, which is ignored by processes that a shell script starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    child = Child(task, environment, here, folder)
    try:
        while (code := child.poll()) is None:
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:  # ray.cancel
        child.ask_to_stop()
        code = child.wait()
    finally:
        child.kill()
    if code < 0:
        raise KilledError(f"killed by signal {-code}")
    return code
