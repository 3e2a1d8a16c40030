"""A fold's resume state: one file, whole or not there, tensors and plain values only."""

from pathlib import Path
from typing import Any

import torch

from scenes.console import UserError
from scenes.files import write_atomic

FORMAT = "scenes-checkpoint-1"


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
        UserError: If the newest file is damaged or belongs to something else; offers the one before.
    """
    for name in ("last.pt", "previous.pt"):
        path = folder / name
        if path.exists():
            return _read(path, identity)
    return None


def _read(path: Path, identity: str) -> dict[str, Any]:
    previous = path.with_name("previous.pt")
    remedy = f"delete {path} to " + (
        f"go on from {previous}" if path.name == "last.pt" and previous.exists() else "start this fold anew"
    )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, end-of-file and runtime errors, by kind of damage
        raise UserError(f"{path}: damaged, or no checkpoint ({type(error).__name__})\n  → {remedy}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this program\n  → {remedy}")
    if state.get("identity") != identity:
        raise UserError(f"{path}: belongs to {state.get('identity')!r}, wanted {identity!r}\n  → {remedy}")
    return state
