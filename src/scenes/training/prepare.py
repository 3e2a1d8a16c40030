"""Reads and checks everything a run needs, so that mistakes are found before training."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch

from scenes.competition.linear_head import why_too_large
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
from scenes.training.recipe import body_is_frozen, set_modes, stages_by_phase
from scenes.training.recipe_choice import choose_recipe, with_kept_recipe


def prepare(config: Config, folds: Sequence[int]) -> Job:
    """Reads and checks everything a run needs, before any training.

    Args:
        config: The experiment.
        folds: Which folds to train.

    Raises:
        UserError: With a list of everything that is wrong.
    """
    for each in recipes_of(config):
        _check_options(each, folds)
        if each.train.epochs or not isinstance(each.augment, str):  # find an invalid transform here, not in a worker
            compose(each.augment, each.image_size, each.symmetry)
    config = with_kept_recipe(config)
    data = read_dataset(config)
    _check_folds(config, data, folds)
    job = _with_recipe(Job(config, data, pretrained_state(config), choose_device()))
    if job.device.type == "cuda":
        torch.cuda.empty_cache()  # the free memory decides where to crop
    _check_model(job)
    crops = where_to_crop(job.data.training_images.shapes, job.config.augment, job.device)[0]
    return job if job.trains_on_features else replace(job, crops=crops)


def _with_recipe(job: Job) -> Job:
    """Chooses a recipe; if it changes the image size, reads again what depends on that."""
    config = choose_recipe(job.config, job.data, (lambda: job.features) if job.pretrained else None)
    if config.largest_size == job.config.largest_size and config.image_size == job.config.image_size:
        return replace(job, config=config)
    return replace(job, config=config, data=read_dataset(config), pretrained=pretrained_state(config))


def _check_options(config: Config, folds: Sequence[int]) -> None:
    """Finds mistakes in the config that can be seen without the data."""
    if FULL in folds and (config.train.early_stopping or config.train.schedule == "plateau"):
        raise UserError(
            "--folds full holds out no rows to validate epochs on: add --set train.early_stopping=null, and "
            "train.schedule=cosine instead of plateau"
        )
    train = config.train
    if body_is_frozen(train) and config.augment == "none" and (train.mixup or train.cutmix):
        raise UserError(
            "the body is frozen and nothing is augmented, so the head trains on features: train.mixup and train.cutmix "
            "have no images to work on; leave them out, or set augment"
        )
    if config.data.soft_targets and (FULL in folds or not train.epochs or body_is_frozen(train)):
        raise UserError(
            "data.soft_targets need folds and a body that trains: leave them out with --folds full, train.epochs: 0 "
            "or a frozen body"
        )
    if config.train.wandb and not find_spec("wandb"):
        raise UserError("train.wandb is set, but wandb is not installed: pip install wandb, or leave it out")


def _check_folds(config: Config, data: Dataset, folds: Sequence[int]) -> None:
    """Finds folds that hold out no row, which happens with very few rows or very large groups."""
    if empty := [fold_name(fold) for fold in folds if fold != FULL and not len(data.rows(fold)[1])]:
        raise UserError(
            f"{', '.join(empty)} of {config.data.folds} would hold out no row: {len(np.unique(data.groups))} groups of "
            "rows are too few or too uneven, or all classes are too rare; lower data.folds, or train --folds full"
        )


def _check_model(job: Job) -> None:
    """Finds mistakes that can only be seen with the network and the classes."""
    config = job.config
    if config.train.class_weights and job.data.task.kind != "classes":
        raise UserError(f"train.class_weights work only for classes; the task is {job.data.task.kind}: leave them out")
    if isinstance(config.train.class_weights, list) and len(config.train.class_weights) != job.data.task.outputs:
        count = len(config.train.class_weights)
        raise UserError(f"train.class_weights has {count} weights for {job.data.task.outputs} classes")
    choose_precision(config.train.precision, job.device)
    choose_precision(config.infer.precision, job.device)
    model = job.new_model()
    for stages in stages_by_phase(config.train):
        set_modes(model, stages, frozen_batch_norm=True)  # fails if timm does not know the network's stages
    check_sizes(model, sizes_seen(config), "infer")
    if (parts := config.train.accumulate) > job.max_accumulate:
        split = f"splitting train.batch_size {config.train.batch_size} into {parts} parts"
        raise UserError(
            f"train.accumulate: {split} leaves batch norms a single row to learn from; set at most {job.max_accumulate}"
        )
    if config.train.linear_probe and not job.starts_with_probe:
        too_large = why_too_large(len(job.data.table), job.data.task.outputs)
        why = (too_large or "batch norms learn their statistics") if job.pretrained else "no pretrained weights"
        say(f"{why}: the head starts at random, without a linear probe")
    if job.trains_on_features:
        say("the body is frozen and nothing is augmented: its features are computed once and only the head trains")
