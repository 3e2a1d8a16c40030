"""A Ray cluster, or Ray on this machine alone."""

import logging
import os
import signal
from importlib.util import find_spec
from typing import Any

from scenes.console import UserError
from scenes.environment import ROOT

# Workers import this project from the same path on every machine.
RUNTIME = {"env_vars": {"PYTHONPATH": str(ROOT / "src"), "RAY_USAGE_STATS_ENABLED": "0"}}


def connect(address: str | None, what_for: str, **options: Any) -> list[dict[str, float]]:
    """Connects to a Ray cluster, or starts Ray on this machine.

    Args:
        address: ``HOST:PORT``, ``auto``, or ``local`` to start one; None takes this machine's cluster if it has one.
        what_for: The option that needs Ray, for the message.
        **options: More arguments for `ray.init`, used only with ``local``.

    Returns:
        The resources of each machine that offers cores: ``CPU``, and ``GPU`` if it has any.

    Raises:
        UserError: If Ray is not installed, there is no cluster at the address, or it offers no cores.
    """
    if not find_spec("ray"):
        raise UserError(f"{what_for} needs Ray: pip install ray==2.60.0 (the same version on all machines)")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data's actors log false alarms; errors are raised
    import ray

    if not ray.is_initialized():
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=RUNTIME,
                **(options if address == "local" else {}),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"Ray does not answer{f' at {address}' if address else ''}: {error}") from None
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has replaced it
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not machines:
        raise UserError("no machine in the Ray cluster offers cores: start one with ray start --num-cpus")
    return machines
