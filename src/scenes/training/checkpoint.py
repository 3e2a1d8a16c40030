"""The training state of a fold and its checkpoint: one file, written atomically, with tensors and plain values only."""

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
    """Everything that changes while a fold trains.

    Attributes:
        model: The network.
        optimizer: Its optimiser, or None if there are no steps to take.
        scaler: The fp16 loss scaler; does nothing in other precisions.
        averaged: The running mean of the last epochs' weights, or None.
        watch: Time and memory.
        loss_sum: The sum of the mean losses of the epoch's steps so far, this process's share of it; a scalar.
        accumulate: How many micro-batches a batch is split into.
        step: How many steps have been taken.
        history: The finished epochs, as rows of history.csv.
        best: For early stopping: the best epoch, its cost and weights, and how many epochs have passed since.
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
    def eval_model(self) -> Classifier:
        """The network to evaluate and save: the averaged one as soon as it has weights."""
        if self.averaged is None or not self.averaged.n_averaged:
            return self.model
        mean: Classifier = self.averaged.module
        return mean

    @property
    def steps_of_epoch(self) -> int:
        """How many steps of the current epoch have been taken."""
        return self.step - sum(row["steps"] for row in self.history)

    def track_best(self, epoch: int, cost: float) -> None:
        """Keeps the weights of the epoch with the lowest cost on the held-out rows."""
        if self.best is None or cost < self.best["cost"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.eval_model.state_dict().items()}
            self.best = {"cost": cost, "epoch": epoch, "waited": 0, "model": weights}
        else:
            self.best["waited"] += 1

    def stops_early(self, patience: int | None) -> bool:
        """Whether the cost has not improved for `patience` epochs."""
        return bool(patience and self.best and self.best["waited"] >= patience)

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint."""
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
        """Restores what `state_dict` returned.

        Raises:
            Exception: Of various types, if it belongs to another network or optimiser.
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
    """Restores a fold's last checkpoint, if there is one.

    Raises:
        UserError: If the checkpoint cannot be used.
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
            f"  → delete {last} and previous.pt beside it to restart this fold from scratch"
        ) from None
    if not fold.processes.is_main:
        state.loss_sum.zero_()  # the saved sum covers all processes
    state.accumulate = fold.processes.even(max(state.accumulate, fold.train.accumulate), fold.train.batch_size)
    say(f"  {fold.name} resumes at step {state.step} of {fold.schedule.steps}")


def write_records(fold: Fold, state: State) -> None:
    """Rewrites history.csv and time.json, in the main process only."""
    if fold.processes.is_main:
        write_json(fold.run.time_file(fold.number), state.watch.state())
        if state.history:
            text = pd.DataFrame(state.history).to_csv(index=False, lineterminator="\n")
            write_text(fold.folder / "history.csv", text)


def save(folder: Path, state: dict[str, Any]) -> None:
    """Writes ``last.pt`` and keeps the previous one as ``previous.pt``; a kill at any moment leaves one of them."""

    def write(temporary: Path) -> None:
        torch.save({"format": FORMAT, **state}, temporary)
        if (folder / "last.pt").exists():
            (folder / "last.pt").replace(folder / "previous.pt")

    write_atomic(folder / "last.pt", write)


def load(folder: Path, identity: str) -> dict[str, Any] | None:
    """Reads the newest checkpoint.

    Args:
        folder: The fold's folder.
        identity: What the checkpoint must belong to.

    Returns:
        The saved state, or None if there is none.

    Raises:
        UserError: If the newest file is damaged or belongs to something else; the message names the previous one.
    """
    for name in ("last.pt", "previous.pt"):
        path = folder / name
        if path.exists():
            return _read(path, identity)
    return None


def _read(path: Path, identity: str) -> dict[str, Any]:
    previous = path.with_name("previous.pt")
    remedy = f"delete {path} to " + (
        f"resume from {previous}" if path.name == "last.pt" and previous.exists() else "restart this fold from scratch"
    )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, EOF and runtime errors, depending on the damage
        raise UserError(f"{path}: damaged or not a checkpoint ({type(error).__name__})\n  → {remedy}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this version of the program\n  → {remedy}")
    if state.get("identity") != identity:
        raise UserError(f"{path}: belongs to {state.get('identity')!r}, expected {identity!r}\n  → {remedy}")
    return state
