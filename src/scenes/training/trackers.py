"""Curves in TensorBoard (where it is installed) and Weights & Biases (where the config names a project)."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scenes.config import Config


class Trackers:
    """Where a fold's curves go beside history.csv."""

    def __init__(self, config: Config, folder: Path, fold: str, first_step: int) -> None:
        self._board = self._wandb = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run takes back what was drawn beyond its checkpoint.
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        if config.train.wandb:
            import wandb

            name = f"{config.name}-{fold}"
            self._wandb = wandb.init(
                project=config.train.wandb, name=name, id=name, resume="allow", config=config.model_dump(mode="json")
            )

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Adds one point to each curve."""
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        """Writes out what is pending."""
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
