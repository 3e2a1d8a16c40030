"""Loads a run's trained folds and the choices that combine them into one prediction."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from scenes.competition.decoding import Decoding
from scenes.competition.task import Task
from scenes.config import Config
from scenes.console import UserError
from scenes.inference.calibration import Calibration
from scenes.inference.predict import share_bodies
from scenes.inference.views import VIEWS, View, sizes_seen, views_of
from scenes.model.backbone import Classifier
from scenes.model.fusion import fuse_batch_norms
from scenes.model.weights import load_classifier, read_task, renamed
from scenes.runs import Run, fold_name, read_json


def load_folds(run: Run, config: Config, folds: Sequence[int], device: torch.device) -> list[Classifier]:
    """Loads the folds' networks for prediction; equal bodies are shared.

    Args:
        run: A run with these folds trained.
        config: The run's config.
        folds: Which models to load.
        device: The device to load them to.

    Returns:
        The networks in float32, channels last, in evaluation mode, with fused batch norms.

    Raises:
        UserError: If a fold's weights are damaged or belong to something else, the folds' outputs differ, the networks
            do not accept an image size, or the class names do not fit.
    """
    models = [load_classifier(run.weights_file(fold), config) for fold in folds]
    columns = models[0].task.columns
    if other := [fold_name(f) for f, model in zip(folds, models, strict=True) if model.task.columns != columns]:
        raise UserError(f"{run.folder}: {', '.join(other)} was trained on different classes than {fold_name(folds[0])}")
    models = [model.to(device, memory_format=torch.channels_last).eval() for model in models]
    check_sizes(models[0], sizes_seen(config), "infer")
    for model, fold in zip(models, folds, strict=True):
        model.name = fold_name(fold)
    share_bodies(models)
    fuse_bodies(models, config.predict_size)
    return models


def check_sizes(model: Classifier, sizes: Iterable[int], setting: str) -> None:
    """Checks that a network accepts image sizes, given in pixels.

    Raises:
        UserError: If it does not; the message names `setting` as the source of the size.
    """
    model.eval()
    for size in sorted(set(sizes)):
        try:
            with torch.inference_mode():
                model(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=model.mean.device))
        except (AssertionError, RuntimeError) as error:
            raise UserError(f"{setting}: {model.config.name} does not accept {size} px: {error}") from None


def fuse_bodies(models: Sequence[Classifier], image_size: int) -> None:
    """Fuses the batch norms of networks that will only predict; shared bodies stay shared."""
    for body in {model.body: None for model in models}:
        fused = fuse_batch_norms(body, image_size)
        for model in models:
            if model.body is body:
                model.body = fused


def run_task(run: Run, config: Config, folds: Sequence[int]) -> Task:
    """Reads a run's task from the first fold's weights.

    Args:
        run: A run with these folds trained.
        config: Its config; ``data.class_names`` replaces the names used in training.
        folds: Which models.

    Raises:
        UserError: If the weights are damaged or belong to something else, or the names do not fit.
    """
    return renamed(read_task(run.weights_file(folds[0])), config)


class ChosenEnsemble(NamedTuple):
    """How a run's folds are combined into one prediction, as chosen on its out-of-fold rows.

    Attributes:
        views: The views of each image.
        calibration: Applied to the mean over folds and views.
        decoding: How calibrated predictions become labels.
    """

    views: list[View]
    calibration: Calibration
    decoding: Decoding

    def combine(self, predicted: np.ndarray) -> np.ndarray:
        """The calibrated mean: from float32 (folds, views, n, outputs) to float32 (n, outputs)."""
        return self.calibration.apply(predicted.mean((0, 1)))


def chosen_ensemble(run: Run, config: Config) -> ChosenEnsemble:
    """Reads from metrics.json what was chosen on the run's out-of-fold rows.

    Args:
        run: A run.
        config: Its config, possibly with another ``infer.tta``.

    Returns:
        The views of ``infer.tta`` without those that made the score worse, the calibration and the decoding; if no fold
        is scored yet, all views, no calibration and the plain decoding.
    """
    chosen = read_json(run.metrics_file, "views") if run.metrics_file.exists() else {}
    scored = chosen.get("views", {})
    views = views_of(config)
    if scored and config.infer.tta == "auto":  # the run's own, even if `auto` meant others at the time
        known = {view.name: view for view in (*chain(*VIEWS.values()), *views)}
        if scored.keys() <= known.keys():
            views = [known[name] for name in scored]
    views = [view for view in views if scored.get(view.name, {}).get("kept", True)]
    fitted_to = chosen.get("metric", {}).get("name")  # thresholds for one metric would be wrong for another
    return ChosenEnsemble(
        views,
        Calibration.from_dict(chosen.get("calibration", {"kind": "classes"})),
        Decoding.from_dict(chosen.get("decoding", {}) if config.metric in (None, fitted_to) else {}),
    )
