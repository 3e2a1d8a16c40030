"""The one path from images to predictions, for validation, out-of-fold rows, test rows, single files and kernels."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from scenes.config import Config
from scenes.console import Meter, UserError, say
from scenes.data.batches import EvalBatch, EvalImages, eval_loader
from scenes.data.images import ImageSource
from scenes.inference.views import View
from scenes.model.backbone import Classifier
from scenes.model.device import choose_precision, is_out_of_memory, synchronise
from scenes.model.prefetch import prefetched


class NotFiniteError(UserError):
    """Some predictions are NaN or infinite; `predictions` holds all of them, also the finite ones."""

    def __init__(self, message: str, predictions: np.ndarray) -> None:
        super().__init__(message)
        self.predictions = predictions


def predict(
    models: Sequence[Classifier],
    images: ImageSource,
    rows: np.ndarray,
    views: Sequence[View],
    size: int,
    batch_size: int,
    device: torch.device,
    precision: str = "fp32",
    workers: int | str = "auto",
    label: str = "",
    names: Sequence[object] | None = None,
    batches: Iterable[EvalBatch] | None = None,
) -> np.ndarray:
    """Predicts every row with every model under every view, reading each image once.

    Args:
        models: On `device`; they are put into evaluation mode.
        images: The images.
        rows: int, shape (n,): which images, in this order.
        views: At least one.
        size: The models' image size in pixels.
        batch_size: Images at a time.
        device: Where the models are.
        precision: The autocast type of the bodies, ``fp32``, ``bf16`` or ``fp16``; heads are always fp32.
        workers: Loader processes, or ``auto``.
        label: A label for the progress lines; empty for none.
        names: The names of all images, for error messages; by default their row numbers.
        batches: The rows' batches, if there is already a loader for them.

    Returns:
        float32, shape (models, views, n, outputs).

    Raises:
        NotFiniteError: If a prediction is NaN or infinite; the message names the fold, the view and the image.
        UserError: If not even one image fits into memory.
    """
    for model in models:
        model.eval()
    network = SplitWhenOutOfMemory(
        lambda seen: _predict_batch(models, seen.to(device, non_blocking=True)), batch_axis=1
    )
    if batches is None:
        dataset = EvalImages(images, rows, [view.canvas(size) for view in views])
        batches = eval_loader(dataset, batch_size, workers, device)
    meter = Meter(-(-len(rows) // batch_size), label, "img", batch_size) if label else None
    done: list[Tensor] = []
    with torch.inference_mode(), autocast(device, precision):
        for batch in prefetched(batches, device):
            # Channels stay last in memory, the fastest layout for convolutions.
            inputs = [view.apply(batch.canvases[view.canvas(size)], size).permute(0, 3, 1, 2) for view in views]
            # From a GPU this copies to pinned memory while the next batch is computed.
            done.append(torch.stack([network(seen) for seen in inputs], 1).to("cpu", non_blocking=True))
            if meter:
                meter.advance()
    synchronise(device)  # waits for all copies at once
    if meter:
        meter.close()
    predictions = torch.cat(done, 2).numpy()
    check_finite(predictions, models, views, rows, names, precision)
    return predictions


def check_finite(
    predictions: np.ndarray,
    models: Sequence[Classifier],
    views: Sequence[View],
    rows: np.ndarray,
    names: Sequence[object] | None,
    precision: str,
) -> None:
    """Checks predictions of shape (models, views, n, outputs); the other arguments are as in `predict`.

    Raises:
        NotFiniteError: As in `predict`.
    """
    is_bad = ~np.isfinite(predictions).all(-1)
    if not is_bad.any():
        return
    model, view, at = (int(place) for place in np.argwhere(is_bad)[0])
    row = int(rows[at])
    image = names[row] if names is not None else f"row {row}"
    others = int(is_bad.any((0, 1)).sum()) - 1
    remedy = "try infer.precision: fp32" if precision != "fp32" else "its weights may be damaged: train the fold again"
    raise NotFiniteError(
        f"{image}: the prediction of {models[model].name} (view {views[view].name}) is not a finite number"
        f"{f', nor are those of {others} other images' if others else ''}; {remedy}",
        predictions,
    )


def predict_as_configured(
    config: Config,
    models: Sequence[Classifier],
    images: ImageSource,
    rows: np.ndarray,
    views: Sequence[View],
    device: torch.device,
    label: str = "",
    names: Sequence[object] | None = None,
    batches: Iterable[EvalBatch] | None = None,
) -> np.ndarray:
    """Predicts with a run's image size, batch size, precision and workers; otherwise as `predict`."""
    return predict(
        models,
        images,
        rows,
        views,
        config.predict_size,
        config.infer.batch_size,
        device,
        choose_precision(config.infer.precision, device),
        config.loader.workers,
        label,
        names,
        batches,
    )


class SplitWhenOutOfMemory:
    """Runs a network on batches and splits them into smaller parts whenever memory runs out."""

    def __init__(self, network: Callable[[Tensor], Tensor], batch_axis: int = 0) -> None:
        """Takes a function of images, and the axis of its result that counts the images."""
        self.network, self.batch_axis, self.parts = network, batch_axis, 1

    def __call__(self, images: Tensor) -> Tensor:
        """Runs the network.

        Raises:
            UserError: If not even one image fits into memory.
        """
        while True:
            parts = min(self.parts, len(images))
            try:
                return torch.cat([self.network(part) for part in images.tensor_split(parts)], self.batch_axis)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if parts == len(images):
                    raise UserError(
                        "not even one image fits into memory; lower image_size or use a smaller model"
                    ) from None
            # Outside the except clause, because the error keeps the failed attempt's memory alive.
            self.parts = 2 * parts
            say(f"  out of memory while predicting: batches are split into {self.parts} parts")
            torch.cuda.empty_cache()  # does nothing if no GPU is in use


def _predict_batch(models: Sequence[Classifier], images: Tensor) -> Tensor:
    """Predictions in float32, shape (models, n, outputs); a body that several models share runs once."""
    owners = {id(model.body): model for model in models}
    features = {body: model.features(images) for body, model in owners.items()}
    return torch.stack([model.predictions(features[id(model.body)]) for model in models])


def share_bodies(models: Sequence[Classifier]) -> None:
    """Makes models with equal bodies share one, since the folds of a linear probe differ only in their heads."""
    kept: list[Classifier] = []
    for model in models:
        state = model.body.state_dict()
        for other in kept:
            others = other.body.state_dict()
            if others.keys() == state.keys() and all(torch.equal(others[name], state[name]) for name in state):
                model.body = other.body
                break
        else:
            kept.append(model)


def autocast(device: torch.device, precision: str) -> torch.autocast | nullcontext[None]:
    """A context in which layers run in `precision`."""
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, types[precision]) if precision in types else nullcontext()
