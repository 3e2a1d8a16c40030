"""Reads and checks all that a run needs, so that mistakes are found before training."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch

from scenes.competition.linear_head import takes_hours
from scenes.config import Config
from scenes.config_file import recipes_of
from scenes.console import UserError, say
from scenes.data.augment import compose
from scenes.data.dataset import Dataset, read_dataset
from scenes.data.resident import where_to_crop
from scenes.inference.models import check_sizes
from scenes.inference.views import sizes_seen
from scenes.model.device import choose_device, choose_precision
from scenes.model.pretrained import pretrained_state
from scenes.runs import FULL, fold_name
from scenes.training.job import Job
from scenes.training.recipe import body_is_frozen, every_stages, set_modes
from scenes.training.recipe_choice import choose_recipe, with_kept_recipe


def prepare(config: Config, folds: Sequence[int]) -> Job:
    """Reads and checks everything a run needs, before any training.

    Args:
        config: The experiment.
        folds: What is to be trained.

    Raises:
        UserError: With the list of all that is wrong.
    """
    for each in recipes_of(config):
        _check_options(each, folds)
        if each.train.epochs or not isinstance(each.augment, str):  # a wrong transform is found here, not in a worker
            compose(each.augment, each.image_size, each.symmetry)
    config = with_kept_recipe(config)
    data = read_dataset(config)
    _check_folds(config, data, folds)
    job = _with_recipe(Job(config, data, pretrained_state(config), choose_device()))
    if job.device.type == "cuda":
        torch.cuda.empty_cache()  # where to crop follows from the free memory
    _check_model(job)
    crops = where_to_crop(job.data.training_images.shapes, job.config.augment, job.device)[0]
    return job if job.trains_on_features else replace(job, crops=crops)


def _with_recipe(job: Job) -> Job:
    """Chooses a recipe; what depends on the image size is read anew for one of another size."""
    config = choose_recipe(job.config, job.data, (lambda: job.features) if job.pretrained else None)
    if config.largest_size == job.config.largest_size and config.image_size == job.config.image_size:
        return replace(job, config=config)
    return replace(job, config=config, data=read_dataset(config), pretrained=pretrained_state(config))


def _check_options(config: Config, folds: Sequence[int]) -> None:
    """Finds mistakes in the config that need no data to be seen."""
    if FULL in folds and (config.train.early_stopping or config.train.schedule == "plateau"):
        raise UserError(
            "--folds full holds no rows out to validate epochs on: add --set train.early_stopping=null, and "
            "train.schedule=cosine in place of plateau"
        )
    train = config.train
    if body_is_frozen(train) and config.augment == "none" and (train.mixup or train.cutmix):
        raise UserError(
            "the body is frozen and nothing is augmented, so the head trains on features: train.mixup and train.cutmix "
            "have no images to work on; leave them out, or set augment"
        )
    if config.data.soft_targets and (FULL in folds or not train.epochs or body_is_frozen(train)):
        raise UserError(
            "data.soft_targets are for the folds of a network that trains: leave them out with --folds full, with "
            "train.epochs: 0 and with a frozen body"
        )
    if config.train.wandb and not find_spec("wandb"):
        raise UserError("train.wandb is set, but wandb is not installed: pip install wandb, or leave it out")


def _check_folds(config: Config, data: Dataset, folds: Sequence[int]) -> None:
    """Finds folds to be trained that hold out no row, as very few rows or very large groups leave them."""
    if empty := [fold_name(fold) for fold in folds if fold != FULL and not len(data.rows(fold)[1])]:
        raise UserError(
            f"{', '.join(empty)} of {config.data.folds} would hold out no row: {len(np.unique(data.groups))} groups of "
            "rows are too few or too uneven, or all classes too rare; lower data.folds, or train --folds full"
        )


def _check_model(job: Job) -> None:
    """Finds mistakes that show only with the network and the classes at hand."""
    config = job.config
    if config.train.class_weights and job.data.task.kind != "classes":
        raise UserError(f"train.class_weights are for classes; the task is {job.data.task.kind}: leave them out")
    if isinstance(config.train.class_weights, list) and len(config.train.class_weights) != job.data.task.outputs:
        count = len(config.train.class_weights)
        raise UserError(f"train.class_weights has {count} weights for {job.data.task.outputs} classes")
    choose_precision(config.train.precision, job.device)
    choose_precision(config.infer.precision, job.device)
    model = job.new_model()
    for stages in every_stages(config.train):
        set_modes(model, stages, frozen_batch_norm=True)  # timm does not know every network's stages
    check_sizes(model, sizes_seen(config), "infer")
    if (parts := config.train.accumulate) > job.most_parts:
        rows = f"{parts} parts of train.batch_size {config.train.batch_size}"
        raise UserError(
            f"train.accumulate: {rows} leave batch norms a single row to learn from; set {job.most_parts} at most"
        )
    if config.train.linear_probe and not job.starts_with_probe:
        why = "batch norms learn their statistics" if job.pretrained else "no pretrained weights"
        if job.pretrained and takes_hours(len(job.data.table), job.data.task.outputs):
            why = f"a linear probe of {len(job.data.table)} rows and {job.data.task.outputs} outputs would take hours"
        say(f"{why}: the head starts at random, without a linear probe")
    if job.trains_on_features:
        say("the body is frozen and nothing is augmented: its features are computed once, only the head trains")
