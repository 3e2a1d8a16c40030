"""Room on a Ray cluster: Ray tasks that start the same processes, on whatever machine has a GPU or cores free."""

import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

from scenes.console import UserError
from scenes.environment import ROOT
from scenes.training.process import INTERRUPTED, POLL_SECONDS, Task

RETRIES = 3
SHARED = "Ray's machines need the repository on storage they share, at one path, and the same Python and packages"
LOCK_SECONDS = 180.0  # to wait for the process of an attempt that was lost, which saves before it ends


class KilledError(Exception):
    """A process that a signal ended, e.g. for want of memory; Ray tries again."""


def ray_slots(tasks: int, address: str | None) -> list["RaySlot"]:
    """Connects to Ray and counts its GPUs, or without any its cores.

    Without an address: the cluster that runs on this machine, else one of this machine alone.

    Raises:
        UserError: If Ray is not installed, or there is no cluster at the address.
    """
    if not find_spec("ray"):
        raise UserError("--parallel ray needs Ray, in one version on all machines: pip install ray==2.60.0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
    import ray

    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"Ray does not answer{f' at {address}' if address else ''}: {error}") from None
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in the place of ours
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not machines:
        raise UserError("no machine of the Ray cluster lends cores: start one with ray start --num-cpus")
    with_gpus = [machine for machine in machines if machine.get("GPU")]
    if with_gpus:
        cores = int(min(machine["CPU"] // machine["GPU"] for machine in with_gpus))
        count = int(sum(machine["GPU"] for machine in with_gpus))
    else:
        at_once = ceil(tasks / len(machines))
        cores = int(max(1, min(machine["CPU"] for machine in machines) // at_once))
        count = int(sum(machine["CPU"] // cores for machine in machines))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores)))}
    needs = {"num_gpus": 1 if with_gpus else 0, "num_cpus": cores}
    return [RaySlot(f"Ray {i}", needs, threads) for i in range(max(1, min(count, tasks)))]


@dataclass(frozen=True, eq=False)
class RaySlot:
    """A share of the cluster, wherever Ray finds it."""

    name: str
    needs: Mapping[str, int]
    environment: Mapping[str, str]

    def start(self, task: Task) -> "RayTask":
        """Hands the task to Ray, which tries again when its machine or a process is lost."""
        import ray

        mark = uuid4().hex
        task.log(f"given to Ray ({mark})")
        work: Any = ray.remote(_work).options(
            **self.needs,
            max_retries=RETRIES,
            retry_exceptions=[KilledError],
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "src")}},
        )
        return RayTask(task, work.remote(task, Path.cwd(), mark, self.environment))


class RayTask:
    """A task that Ray has."""

    def __init__(self, task: Task, reference: Any) -> None:
        self._task, self._reference = task, reference

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
            if isinstance(error, RayTaskError):
                why = str(error.cause)
            else:
                why = f"{str(error).partition(chr(10))[0]}; {SHARED}"
            self._task.log(f"was given up by Ray: {why}")
            return 1

    def ask_to_stop(self) -> None:
        """Lets it save and end."""
        import ray

        ray.cancel(self._reference)

    def kill(self) -> None:
        """Ends it at once."""
        import ray

        ray.cancel(self._reference, force=True)


def _work(task: Task, folder: Path, mark: str, environment: Mapping[str, str]) -> int:
    """What runs on the machine that Ray chose: the process that a machine of its own would start."""
    log_file, here = folder / task.log_file, socket.gethostname()
    if not log_file.is_file() or mark not in log_file.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{folder} on {here} is not that of the machine that asks; {SHARED}")
    with FileLock(log_file.with_name(".lock"), timeout=LOCK_SECONDS):
        pass
    process = task.start(folder, environment, here)
    try:
        while (code := process.poll()) is None:
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:  # ray.cancel
        process.ask_to_stop()
        code = process.wait()
    finally:
        process.kill()
    if code < 0:
        raise KilledError(f"killed by signal {-code}")
    return code
