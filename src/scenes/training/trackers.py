"""Logs curves to TensorBoard (if it is installed) and Weights & Biases (if the config names a project).

Weights & Biases works offline, in ``wandb/`` in the fold's folder, for ``wandb sync`` to upload; WANDB_MODE=online in
the environment uploads at once.
"""

import os
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from scenes.config import Config


class Trackers:
    """Logs a fold's curves, under the column names of history.csv."""

    def __init__(self, config: Config, folder: Path, fold: str, enabled: bool = True) -> None:
        self._board = self._wandb = None
        if not enabled:
            return
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            # purge_step=0 discards earlier curves, because a resumed run logs its history again, see `log_history`.
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=0)
        if config.train.wandb:
            import wandb

            name = f"{config.name}-{fold}"
            self._wandb = wandb.init(
                project=config.train.wandb,
                name=name,
                id=name,
                resume="allow",
                dir=folder,
                mode=cast(Any, os.environ.get("WANDB_MODE", "offline")),  # online only if the user asks for it
                config=config.model_dump(mode="json"),
            )

    def log_history(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Logs what happened before this process's first step: the probe and, if resumed, the finished epochs.

        No epoch is missing or duplicated: TensorBoard discarded them, and Weights & Biases skips steps it already has.
        """
        step = 0
        for row in history:
            step += row["steps"]
            self.log(row, step)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Adds one point to each curve that has a value."""
        known = {name: value for name, value in values.items() if value is not None}
        if self._board:
            for name, value in known.items():
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(known, step=step)

    def close(self) -> None:
        """Flushes and closes the logs."""
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
