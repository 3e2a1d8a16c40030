"""Weights in half precision: half the upload, and the effect on the score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from scenes.config import Config
from scenes.console import UserError, say
from scenes.data.dataset import reopen_dataset
from scenes.files import write_atomic
from scenes.inference.models import chosen_ensemble
from scenes.inference.predict import predict_as_configured
from scenes.model.device import choose_device
from scenes.model.weights import load_classifier, read_metadata, read_state
from scenes.runs import FULL, Run, fold_name


def halve(source: Path, target: Path) -> None:
    """Writes weights in half precision, except vectors, which are small and whose statistics may exceed fp16.

    Raises:
        UserError: If a weight is too large for half precision.
    """
    state = {
        name: tensor.half() if tensor.is_floating_point() and tensor.squeeze().ndim > 1 else tensor
        for name, tensor in read_state(source).items()
    }
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise UserError(f"{source}: {broken[0]} is too large for half precision; build without --half")
    write_atomic(target, lambda temporary: save_file(state, temporary, read_metadata(source)))


def measure_half(run: Run, halved: Run, config: Config, folds: Sequence[int]) -> dict[str, Any] | None:
    """Predicts the rows each fold held out in both precisions, and prints what half precision costs.

    Returns:
        The number of rows, both scores and the largest change of a prediction; None for a model without held-out rows.

    Raises:
        UserError: If the training data is not what the run was trained on.
    """
    held_out = [fold for fold in folds if fold != FULL]
    if not held_out:
        say("half precision: its effect is unknown, because a model trained on every row holds none out")
        return None
    say(f"half precision: predicting the rows held out by {', '.join(map(fold_name, held_out))} in both precisions")
    data, device = reopen_dataset(run, config), choose_device()
    rows, predicted, chosen = [], [], chosen_ensemble(run, config)
    for fold in held_out:
        with safe_open(run.fold_oof_file(fold), "np") as saved:
            rows.append(saved.get_tensor("rows"))
        models = [load_classifier(place.weights_file(fold), config).to(device) for place in (run, halved)]
        label, names = fold_name(fold), data.table.names
        both = predict_as_configured(config, models, data.images, rows[-1], chosen.views, device, label, names)
        predicted.append(np.stack([chosen.combine(each[None]) for each in both]))
    full, half = np.concatenate(predicted, 1)
    targets, largest = data.targets[np.concatenate(rows)], float(np.abs(full - half).max())
    full, half = (chosen.decoding.apply(each) for each in (full, half))
    before, after = (data.metric.score(each, targets)[0] for each in (full, half))
    error = data.metric.gain(full, half, targets)[1]
    say(
        f"half precision: OOF {data.metric.name} {after:.4f} instead of {before:.4f} "
        f"({after - before:+.4f} ± {error:.4f}), predictions change by at most {largest:.1e}"
    )
    return {"n": len(targets), "metric": data.metric.name, "full": before, "half": after, "largest_change": largest}
