"""The state of a fold's training, and its checkpoint: one file, whole or absent, tensors and plain values only."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from scenes.console import UserError, say
from scenes.files import write_atomic, write_text
from scenes.model.backbone import Classifier
from scenes.runs import write_json
from scenes.training.job import Fold
from scenes.training.stopwatch import Stopwatch

FORMAT = "scenes-checkpoint-2"


@dataclass
class State:
    """All that changes while a fold trains.

    Attributes:
        model: The network.
        optimizer: Its optimiser, or None if no step is to be done.
        scaler: The loss scaling of fp16; does nothing in other precisions.
        averaged: The mean of the weights after the last epochs so far, or None.
        watch: Time and memory.
        loss_sum: The sum of this process's parts of the mean losses of the epoch's steps so far, a scalar.
        accumulate: How many micro-batches a batch is split into.
        step: How many steps are done.
        history: The finished epochs, rows of history.csv.
        best: For early stopping: the best epoch, its loss and weights, and how many epochs passed since.
    """

    model: Classifier
    optimizer: torch.optim.Optimizer | None
    scaler: torch.amp.GradScaler
    averaged: AveragedModel | None
    watch: Stopwatch
    loss_sum: Tensor
    accumulate: int
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None

    @property
    def validated(self) -> Classifier:
        """The network whose predictions count: the mean, once it has begun."""
        if self.averaged is None or not self.averaged.n_averaged:
            return self.model
        mean: Classifier = self.averaged.module
        return mean

    @property
    def steps_of_epoch(self) -> int:
        """How many steps the present epoch has had so far."""
        return self.step - sum(row["steps"] for row in self.history)

    def track_best(self, epoch: int, cost: float) -> None:
        """Keeps the weights of the epoch with the lowest cost on the held-out rows."""
        if self.best is None or cost < self.best["cost"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.validated.state_dict().items()}
            self.best = {"cost": cost, "epoch": epoch, "waited": 0, "model": weights}
        else:
            self.best["waited"] += 1

    def stops_early(self, patience: int | None) -> bool:
        """Whether the cost has not improved for so many epochs."""
        return bool(patience and self.best and self.best["waited"] >= patience)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.optimizer else None,
            "scaler": self.scaler.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
            "watch": self.watch.state(),
            "loss_sum": self.loss_sum,
            "accumulate": self.accumulate,
            "step": self.step,
            "history": self.history,
            "best": self.best,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            Exception: Of many kinds, if it is of another network or optimiser.
        """
        self.model.load_state_dict(saved["model"])
        if self.optimizer:
            self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.averaged:
            self.averaged.load_state_dict(saved["averaged"])
        self.watch.resume(saved["watch"])
        self.loss_sum.copy_(saved["loss_sum"])
        self.accumulate = int(saved["accumulate"])
        self.step = int(saved["step"])
        self.history, self.best = saved["history"], saved["best"]


def resume(fold: Fold, state: State) -> None:
    """Takes over a fold's last checkpoint, if there is one.

    Raises:
        UserError: If it cannot be used.
    """
    saved = fold.processes.from_main(lambda: load(fold.folder, fold.identity))
    if not saved:
        return
    last = fold.folder / "last.pt"
    try:
        state.load_state_dict(saved)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{last}: does not fit this network and optimiser ({type(error).__name__})\n"
            f"  → delete {last} and previous.pt beside it to start this fold anew"
        ) from None
    if not fold.processes.is_main:
        state.loss_sum.zero_()  # the saved one is the sum over all processes
    state.accumulate = fold.processes.even(max(state.accumulate, fold.train.accumulate), fold.train.batch_size)
    say(f"  {fold.name} resumes at step {state.step} of {fold.schedule.steps}")


def write_records(fold: Fold, state: State) -> None:
    """Writes history.csv and time.json anew, in the main process."""
    if fold.processes.is_main:
        write_json(fold.run.time_file(fold.number), state.watch.state())
        if state.history:
            text = pd.DataFrame(state.history).to_csv(index=False, lineterminator="\n")
            write_text(fold.folder / "history.csv", text)


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes ``last.pt`` and keeps the one before as ``previous.pt``; a kill at any moment leaves one of them."""

    def write(temporary: Path) -> None:
        torch.save({"format": FORMAT, **state}, temporary)
        if (folder / "last.pt").exists():
            (folder / "last.pt").replace(folder / "previous.pt")

    write_atomic(folder / "last.pt", write)


def load(folder: Path, identity: str) -> dict[str, Any] | None:
    """Reads the newest state.

    Args:
        folder: The fold's folder.
        identity: What the state must belong to.

    Returns:
        What was saved, or None if nothing was.

    Raises:
        UserError: If the newest file is damaged or belongs to something else; names the one before.
    """
    for name in ("last.pt", "previous.pt"):
        path = folder / name
        if path.exists():
            return _read(path, identity)
    return None


def _read(path: Path, identity: str) -> dict[str, Any]:
    previous = path.with_name("previous.pt")
    remedy = f"delete {path} to " + (
        f"resume from {previous}" if path.name == "last.pt" and previous.exists() else "start this fold anew"
    )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, end-of-file and runtime errors, by kind of damage
        raise UserError(f"{path}: damaged, or no checkpoint ({type(error).__name__})\n  → {remedy}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this version of the program\n  → {remedy}")
    if state.get("identity") != identity:
        raise UserError(f"{path}: belongs to {state.get('identity')!r}, expected {identity!r}\n  → {remedy}")
    return state
