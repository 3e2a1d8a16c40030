"""What all folds of a run share: the data, the device, the pretrained weights, the frozen body's features."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from scenes.config import Config
from scenes.console import UserError, say
from scenes.data.augment import compose
from scenes.data.dataset import Dataset, read_dataset
from scenes.data.folds import FULL, fold_name
from scenes.inference.predict import VIEWS
from scenes.model.backbone import Classifier, has_depthwise
from scenes.model.device import choose_device, choose_precision, use_deterministic_algorithms
from scenes.model.weights import pretrained_state
from scenes.training.probe import body_features
from scenes.training.recipe import body_is_frozen


@dataclass(frozen=True)
class Job:
    """A run's inputs, the same for every fold.

    Attributes:
        config: The experiment.
        data: The rows, images and folds.
        pretrained: The body's weights to start from, or None.
        device: Where to compute.
    """

    config: Config
    data: Dataset
    pretrained: dict[str, Tensor] | None
    device: torch.device

    def new_model(self) -> Classifier:
        """A network with the pretrained body and a random head, on the device."""
        model = Classifier(self.config.model, self.config.image_size, len(self.data.labels.classes))
        if self.pretrained:
            model.body.load_state_dict(self.pretrained)
        return model.to(self.device, memory_format=torch.channels_last)

    @property
    def starts_with_probe(self) -> bool:
        """Whether the head starts as a logistic regression, which needs pretrained features."""
        return self.config.train.linear_probe and self.pretrained is not None

    @property
    def trains_on_features(self) -> bool:
        """Whether the body's output for a row never changes, so that only the head is trained."""
        return body_is_frozen(self.config.train) and self.config.augment == "none"

    @cached_property
    def bf16_pays(self) -> bool:
        """Whether training is faster in bf16 on a CPU that has it."""
        return not self.trains_on_features and not has_depthwise(self.new_model())

    @property
    def precision(self) -> str:
        """What training computes in: ``fp32``, ``bf16`` or ``fp16``."""
        return choose_precision(self.config.train.precision, self.device, self.bf16_pays)

    @property
    def predict_precision(self) -> str:
        """What prediction computes in, and the features of a frozen body."""
        return choose_precision(self.config.infer.precision, self.device)

    @cached_property
    def features(self) -> np.ndarray:
        """The frozen body's features of all training rows, float32, shape (n, f)."""
        config = self.config
        return body_features(
            self.new_model(),
            self.data.images,
            config.image_size,
            config.infer.batch_size,
            self.device,
            config.loader.workers,
            config.data.cache,
            self.predict_precision,
        )

    def compute_features(self) -> None:
        """Computes and keeps the frozen body's features, if training needs them."""
        if self.starts_with_probe or self.trains_on_features:
            self.features  # noqa: B018 - kept by cached_property


def prepare(config: Config, folds: Sequence[int]) -> Job:
    """Reads and checks everything a run needs, before any training.

    Args:
        config: The experiment.
        folds: What is to be trained.

    Raises:
        UserError: With the list of all that is wrong.
    """
    _check_options(config, folds)
    compose(config.augment, config.image_size)  # a wrong transform is found here, not in a worker
    data = read_dataset(config)
    _check_folds(config, data, folds)
    if config.train.deterministic:
        use_deterministic_algorithms()
    job = Job(config, data, pretrained_state(config), choose_device())
    _check_model(job)
    return job


def _check_options(config: Config, folds: Sequence[int]) -> None:
    """Finds mistakes in the config that need no data to be seen."""
    if FULL in folds and (config.train.early_stopping or config.train.schedule == "plateau"):
        raise UserError(
            "--folds full holds no rows out to validate epochs on: add --set train.early_stopping=null, and "
            "train.schedule=cosine in place of plateau"
        )
    train = config.train
    if body_is_frozen(train) and config.augment == "none" and (train.mixup or train.cutmix or train.sizes):
        raise UserError(
            "the body is frozen and nothing is augmented, so the head trains on features: train.mixup, train.cutmix "
            "and train.sizes have no images to work on; leave them out, or set augment"
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
    if isinstance(config.train.class_weights, list) and len(config.train.class_weights) != len(job.data.labels.classes):
        count = len(config.train.class_weights)
        raise UserError(f"train.class_weights has {count} weights for {len(job.data.labels.classes)} classes")
    choose_precision(config.train.precision, job.device)
    choose_precision(config.infer.precision, job.device)
    model = job.new_model()
    asked = [(size, "train.sizes") for size in (config.train.sizes or {}).values()]
    asked += [(view.canvas(config.predict_size), "infer") for view in VIEWS[config.infer.tta] if not view.crop]
    for size, key in sorted(set(asked)):
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=job.device))
        except (AssertionError, RuntimeError) as error:
            raise UserError(f"{key}: {config.model.name} does not take {size} px: {error}") from None
    if config.train.linear_probe and job.pretrained is None:
        say("no pretrained weights: the head starts at random, without a linear probe")
    if job.trains_on_features:
        say("the body is frozen and nothing is augmented: its features are computed once, only the head trains")
