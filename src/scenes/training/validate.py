"""Predicts and scores a fold's held-out rows."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from scenes.competition.metric import metric_named
from scenes.inference.predict import check_finite, predict_as_configured
from scenes.inference.views import PLAIN, View
from scenes.model.backbone import Classifier
from scenes.model.fusion import fused
from scenes.training.checkpoint import State
from scenes.training.job import Fold


def validate(fold: Fold, state: State) -> dict[str, float]:
    """Scores the held-out rows with the plain view."""
    model = state.eval_model
    if fold.job.trains_on_features:
        return scores(fold, _predict_from_features(fold, model))
    return scores(fold, predict_held_rows(fold, model, [PLAIN])[0])


def predict_held_rows(fold: Fold, model: Classifier, views: Sequence[View]) -> np.ndarray:
    """Predicts the held-out rows: float32, shape (views, n, outputs).

    If the body did not train, the plain view is predicted from its cached features, if the image size is the same.
    """
    config = fold.job.config
    if PLAIN not in views or not fold.job.keeps_body or config.predict_size != config.image_size:
        return _predict_images(fold, model, views)
    others = [view for view in views if view != PLAIN]
    predicted = dict(zip(others, _predict_images(fold, model, others), strict=True)) if others else {}
    predicted[PLAIN] = _predict_from_features(fold, model)
    return np.stack([predicted[view] for view in views])


def _predict_from_features(fold: Fold, model: Classifier) -> np.ndarray:
    job = fold.job
    features = torch.from_numpy(job.features[fold.held_rows]).to(job.device)
    with torch.inference_mode():
        predictions: np.ndarray = model.eval().predictions(features).cpu().numpy()
    names, precision = job.data.table.names, job.predict_precision
    check_finite(predictions[None, None], [model], [PLAIN], fold.held_rows, names, precision)
    return predictions


def _predict_images(fold: Fold, model: Classifier, views: Sequence[View]) -> np.ndarray:
    """Predicts the rows, divided among the processes."""
    job, processes = fold.job, fold.processes
    processes.copy_main_(model.buffers())  # learnt running statistics differ between processes
    label = f"predicting {fold.name}" if list(views) != [PLAIN] else ""
    rows, config, data = fold.own_held_rows, job.config, job.data
    own = None
    if len(rows):
        is_plain = all(view.canvas(config.predict_size) == config.predict_size for view in views)
        batches = fold.held_batches if is_plain else None
        # A copy of a compiled body would be compiled again.
        with nullcontext() if config.train.compile else fused(model, config.predict_size):
            own = predict_as_configured(
                config, [model], data.images, rows, views, job.device, label, data.table.names, batches
            )[0]
    return np.concatenate([part for part in processes.gather(own) if part is not None], 1)


def scores(fold: Fold, predictions: np.ndarray) -> dict[str, float]:
    """Scores predictions for the held-out rows, of shape (n, outputs), under history.csv's column names."""
    task, targets = fold.job.data.task, fold.job.data.targets[fold.held_rows]
    metrics = {"val_loss": metric_named("rmse" if task.kind == "number" else "log_loss", task)}
    if task.kind == "classes":
        metrics["val_accuracy"] = metric_named("accuracy", task)
    metrics[f"val_{fold.job.data.metric.name}"] = fold.job.data.metric
    return {name: metric.score(predictions, targets)[0] for name, metric in metrics.items()}


def in_words(row: Mapping[str, Any]) -> str:
    """Formats the scores in a row of the history for a printed line."""
    found = {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}
    return "".join(f", held-out {name} {value:.4f}" for name, value in found.items())
