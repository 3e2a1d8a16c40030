"""A run's trained folds as one ensemble, and the views that it looks at images with."""

from collections.abc import Sequence

import torch

from scenes.config import Config
from scenes.console import UserError
from scenes.data.folds import fold_name
from scenes.inference.predict import VIEWS, View, share_bodies
from scenes.model.backbone import Classifier
from scenes.model.fusion import fuse_batch_norms
from scenes.model.weights import load_classifier
from scenes.runs import Run, read_json


def load_folds(
    run: Run, config: Config, folds: Sequence[int], device: torch.device
) -> tuple[list[Classifier], list[str]]:
    """Loads the folds' networks; equal bodies are shared.

    Args:
        run: A run with these folds trained.
        config: The run's config.
        folds: Which models.
        device: Where to.

    Returns:
        The networks in float32, channels last, in evaluation mode, batch norms fused; and their classes.

    Raises:
        UserError: If a fold's weights are damaged or foreign, or the folds disagree on the classes.
    """
    loaded = [load_classifier(run.weights_file(fold), config) for fold in folds]
    classes = loaded[0][1]
    if strangers := [fold_name(f) for f, (_, other) in zip(folds, loaded, strict=True) if other != classes]:
        raise UserError(f"{run.folder}: {', '.join(strangers)} was trained on other classes than {fold_name(folds[0])}")
    models = [model.to(device, memory_format=torch.channels_last).eval() for model, _ in loaded]
    for model, fold in zip(models, folds, strict=True):
        model.name = fold_name(fold)
    share_bodies(models)
    fuse_bodies(models, config.predict_size)
    return models, classes


def fuse_bodies(models: Sequence[Classifier], image_size: int) -> None:
    """Fuses the batch norms of networks that only predict from now on; a body that several share stays shared."""
    for body in {model.body: None for model in models}:
        fused = fuse_batch_norms(body, image_size)
        for model in models:
            if model.body is body:
                model.body = fused


def chosen_views(run: Run, config: Config) -> list[View]:
    """The views of ``infer.tta``, without those that made the run's out-of-fold score worse (see metrics.json)."""
    views = VIEWS[config.infer.tta]
    if not run.metrics_file.exists():
        return views
    judged = read_json(run.metrics_file, "views")["views"]
    return [view for view in views if judged.get(view.name, {}).get("kept", True)]
