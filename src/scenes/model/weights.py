"""Reads any weight file; saves and loads trained networks with what their outputs mean."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from scenes.competition.table import some
from scenes.competition.task import Task, class_task, task_from_dict
from scenes.config import Config
from scenes.console import UserError
from scenes.files import write_atomic
from scenes.model.backbone import Classifier

WRAPPERS = ("state_dict_ema", "state_dict", "model_ema", "model_state_dict", "model")


def read_state(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a .safetensors or .pth file; a pickle's code is never run.

    Raises:
        UserError: If the file is damaged or holds more than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, key and runtime errors, depending on the damage
        raise UserError(f"{file}: not readable as weights ({type(error).__name__}: {first_line(error)})") from None
    while isinstance(content, Mapping) and (
        inner := next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
    ):
        content = inner
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise UserError(f"{file}: not a plain mapping of names to tensors")
    return dict(content)


def read_metadata(file: Path) -> dict[str, str]:
    """Reads the metadata in a .safetensors file's header.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a complete safetensors file ({first_line(error)})") from None


def first_line(error: BaseException) -> str:
    """The start of an error's message."""
    return (str(error).strip().splitlines() or [""])[0][:200]


def save_classifier(model: Classifier, path: Path, task: Task, run: str, prior: Sequence[float] | None = None) -> None:
    """Writes a trained network.

    Args:
        model: The network.
        path: The file to write.
        task: What its outputs mean.
        run: The run's name.
        prior: The prediction for an unreadable image: each class's share of the rows it was trained on.
    """
    content = {"format": 1, "classes": task.columns, "run": run, "task": task.to_dict()}
    if prior is not None:
        content["prior"] = [float(share) for share in prior]
    # One entry: safetensors writes several in a random order, and the same run must give the same bytes.
    metadata = {"scenes": json.dumps(content)}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomic(path, lambda temporary: save_file(state, temporary, metadata))


def load_classifier(path: Path, config: Config) -> Classifier:
    """Reads a trained network.

    Args:
        path: Written by `save_classifier`.
        config: The run's config.

    Returns:
        The network in float32 on the CPU; its task says what the outputs mean, with the names in ``data.class_names``.

    Raises:
        UserError: If the file is damaged, not a trained fold or of a different network, or the names do not fit.
    """
    model = Classifier(config.model, config.image_size, renamed(read_task(path), config))
    try:
        model.load_state_dict(read_state(path))
    except RuntimeError as error:
        raise UserError(
            f"{path}: does not fit {config.model.name} as the run's config describes it ({first_line(error)})"
        ) from None
    return model


def read_task(path: Path) -> Task:
    """Reads what the outputs of a trained network mean.

    Raises:
        UserError: If the file is damaged or not a trained fold.
    """
    metadata = _fold_metadata(path)
    if "task" not in metadata:  # written before there were tasks other than classes
        return class_task(metadata["classes"])
    return task_from_dict(metadata["task"])


def renamed(task: Task, config: Config) -> Task:
    """Returns the task with the names in ``data.class_names``, if there are any.

    Raises:
        UserError: If their number is wrong.
    """
    names = config.data.class_names
    if not names or task.kind == "number":
        return task
    if len(names) != task.outputs:
        raise UserError(f"data.class_names: {len(names)} names for {task.outputs} outputs ({some(task.columns)})")
    return replace(task, names=list(names))  # type: ignore[type-var]


def read_prior(path: Path) -> np.ndarray:
    """Reads each class's share of the rows a network was trained on: float32, shape (classes,).

    Raises:
        UserError: If the file is damaged, not a trained fold, or lacks them.
    """
    metadata = _fold_metadata(path)
    prior = metadata.get("prior")
    if not isinstance(prior, list) or len(prior) != len(metadata["classes"]):
        raise UserError(f"{path}: does not hold the classes' shares; train the fold again, or repair the images")
    return np.array(prior, np.float32)


def _fold_metadata(path: Path) -> dict[str, Any]:
    """Reads what `save_classifier` wrote next to the tensors."""
    try:
        metadata = json.loads(read_metadata(path).get("scenes", "{}"))
    except ValueError:
        metadata = None
    known = isinstance(metadata, dict) and metadata.get("format") == 1
    classes = metadata.get("classes") if known else None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: not the weights of a trained fold; train it with src/train.py")
    return metadata
