"""What the folds of a run share (data, device, pretrained weights, frozen body's features), and a single fold."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from scenes.competition.linear_head import why_too_large
from scenes.config import Config, TrainConfig
from scenes.console import UserError, say
from scenes.data.augment import AugmentedImages
from scenes.data.batches import EvalBatch, EvalImages, Schedule, eval_loader
from scenes.data.dataset import Dataset
from scenes.data.resident import ResidentImages
from scenes.inference.views import PLAIN, views_of
from scenes.model.backbone import Classifier
from scenes.model.device import choose_precision, is_out_of_memory
from scenes.randomness import key
from scenes.runs import Run, fold_name, read_json
from scenes.training import recipe
from scenes.training.distributed import Processes
from scenes.training.features import body_features
from scenes.training.recipe import body_is_frozen

CPU_CROPS = "the CPU makes the crops from here on; pixels differ by a grey level, so weights differ in some digits"


@dataclass(frozen=True)
class Job:
    """A run's inputs, the same for every fold.

    Attributes:
        config: The experiment.
        data: The rows, images and folds.
        pretrained: The weights that the body starts from, or None.
        device: Where to compute.
        crops: Where training images are cropped and flipped, ``cpu`` or ``gpu``.
    """

    config: Config
    data: Dataset
    pretrained: dict[str, Tensor] | None
    device: torch.device
    crops: str = "cpu"

    def new_model(self) -> Classifier:
        """A network with the pretrained body and a random head, on the device.

        Without pretrained weights the body is random too; if it stays frozen, it is the same in every network.
        """
        if self.pretrained is None and not self.trains_on_features:
            model = Classifier(self.config.model, self.config.image_size, self.data.task)
        else:
            model = copy.deepcopy(self._template)
            model.reset_head()
        return model.to(self.device, memory_format=torch.channels_last)

    @cached_property
    def _template(self) -> Classifier:
        """A network to copy, which is faster than making random weights and replacing them."""
        with torch.random.fork_rng(devices=[]):  # later random numbers must not depend on when this is made
            torch.manual_seed(key("body", self.config.seed))
            model = Classifier(self.config.model, self.config.image_size, self.data.task)
        if self.pretrained:
            model.body.load_state_dict(self.pretrained, assign=True)  # avoids a second copy in memory
        return model

    @property
    def starts_with_probe(self) -> bool:
        """Whether the head starts as a logistic regression on pretrained features."""
        train = self.config.train
        if self.pretrained is None or not recipe.starts_with_probe(train, self._template):
            return False
        return not train.epochs or not why_too_large(len(self.data.table), self.data.task.outputs)

    @property
    def trains_on_features(self) -> bool:
        """Whether the body's output for a row never changes, so that only the head trains, on features."""
        return body_is_frozen(self.config.train) and self.config.augment == "none"

    @property
    def max_accumulate(self) -> int:
        """The most micro-batches that a batch can be split into: batch norms cannot learn from a single row."""
        train = self.config.train
        is_frozen = recipe.freezes_batch_norm(train, self.pretrained is not None)
        allows_single_rows = is_frozen or not recipe.has_batch_norm(self._template)
        return train.batch_size if allows_single_rows else max(1, train.batch_size // 2)

    @property
    def keeps_body(self) -> bool:
        """Whether the trained network has the same `features`, which are then already computed."""
        return self.trains_on_features or (self.starts_with_probe and not self.config.train.epochs)

    @property
    def precision(self) -> str:
        """The precision of training: ``fp32``, ``bf16`` or ``fp16``; a head alone always trains in fp32."""
        if self.trains_on_features:
            return "fp32"
        return choose_precision(self.config.train.precision, self.device)

    @property
    def predict_precision(self) -> str:
        """The precision of prediction and of a frozen body's features."""
        return choose_precision(self.config.infer.precision, self.device)

    @cached_property
    def features(self) -> np.ndarray:
        """The frozen body's features of all training rows, float32, shape (n, f)."""
        return body_features(self.new_model(), self.data.images, self.config.image_size, self.config)

    @cached_property
    def resident(self) -> ResidentImages | None:
        """The training images in GPU memory, if they are cropped there."""
        if self.crops != "gpu":
            return None
        images = self.data.training_images
        try:
            return ResidentImages(images, images.shapes, self.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        say(f"the decoded images do not fit into GPU memory: {CPU_CROPS}")
        return None

    def pinned(self, run: Run) -> "Job":
        """The job with the precisions and crops its run began with, whatever this machine would choose.

        Raises:
            UserError: If this machine cannot compute in these precisions.
        """
        begun = read_json(run.precision_file, "train", "infer")
        for part, here in (("train", self.precision), ("infer", self.predict_precision)):
            if begun[part] == here:
                continue
            began = f"{run.folder} began with {part}.precision {begun[part]}, this machine would choose {here}"
            if begun[part] == "fp16" and self.device.type == "cpu":
                raise UserError(
                    f"{began} and cannot compute in {begun[part]}\n"
                    f"  → resume on a GPU; or start a run under another name: --set name=NEW; or delete {run.folder}"
                )
            say(f"{began}: it resumes in {begun[part]}, so that all folds are trained the same way")
        train = self.config.train.model_copy(update={"precision": begun["train"]})
        infer = self.config.infer.model_copy(update={"precision": begun["infer"]})
        crops = begun.get("crops", "cpu")
        if crops == "gpu" and self.crops == "cpu" and self.device.type == "cpu":
            say(f"{run.folder} began with crops made on a GPU, which this machine lacks: {CPU_CROPS}")
            crops = "cpu"
        return replace(self, config=self.config.model_copy(update={"train": train, "infer": infer}), crops=crops)

    def compute_features(self) -> None:
        """Computes and caches the frozen body's features, if training needs them."""
        if self.starts_with_probe or self.trains_on_features:
            self.features  # noqa: B018 - kept by cached_property


@dataclass(frozen=True)
class Fold:
    """What is trained, on which rows and by which processes; immutable.

    Attributes:
        job: What the run's folds share.
        run: Where to write.
        number: The fold's number, or FULL.
        processes: The processes that train it together.
        step_limit: For a dry run: stop after this many steps, predict as many batches, keep nothing.
    """

    job: Job
    run: Run
    number: int
    processes: Processes
    step_limit: int | None = None

    @property
    def name(self) -> str:
        """The fold's name."""
        return fold_name(self.number)

    @property
    def train(self) -> TrainConfig:
        """The training section of the config."""
        return self.job.config.train

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.run.fold_folder(self.number)

    @cached_property
    def held_rows(self) -> np.ndarray:
        """The held-out rows, which it never trains on."""
        rows = self.job.data.rows(self.number)[1]
        return rows if self.step_limit is None else rows[: self.step_limit * self.job.config.infer.batch_size]

    @property
    def own_held_rows(self) -> np.ndarray:
        """The held-out rows that this process predicts."""
        return self.held_rows[self.processes.share(len(self.held_rows), self.job.config.infer.batch_size)]

    @cached_property
    def held_batches(self) -> DataLoader[EvalBatch]:
        """Batches of these rows at the prediction size, for all epochs' validation; the loader keeps its workers."""
        config = self.job.config
        images = EvalImages(self.job.data.images, self.own_held_rows, [config.predict_size])
        return eval_loader(images, config.infer.batch_size, config.loader.workers, self.job.device, keep_workers=True)

    @cached_property
    def schedule(self) -> Schedule:
        """Which rows each step trains on."""
        config, rows = self.job.config, self.job.data.training_rows(self.number)
        return Schedule(rows, config.train.epochs, config.train.batch_size, config.seed, self.number)

    @cached_property
    def augmented(self) -> AugmentedImages:
        """Its training images, augmented on the CPU."""
        config, images = self.job.config, self.job.data.training_images
        size, symmetry = config.image_size, config.symmetry
        return AugmentedImages(images, config.augment, size, config.seed, self.number, symmetry)

    def targets(self, rows: Tensor) -> Tensor:
        """The target outputs of some rows: float32, shape (rows, outputs), pinned for a GPU."""
        targets = torch.from_numpy(self.job.data.training_outputs(self.number, rows.numpy()))
        return targets.pin_memory() if self.job.device.type == "cuda" else targets

    @cached_property
    def class_weights(self) -> Tensor | None:
        """The weight of each class in the loss, on the device."""
        data = self.job.data
        weights = recipe.class_weights(
            self.job.config.train, data.targets[data.rows(self.number)[0]], data.task.outputs
        )
        return None if weights is None else weights.to(self.job.device)

    @property
    def freezes_batch_norm(self) -> bool:
        """Whether batch norms keep their running statistics."""
        return recipe.freezes_batch_norm(self.train, self.job.pretrained is not None)

    @property
    def predicts_plain_view(self) -> bool:
        """Whether the final prediction includes the plain view, which validation uses."""
        return PLAIN in views_of(self.job.config)

    def cost(self, row: Mapping[str, Any]) -> float:
        """What early stopping and the plateau schedule minimise, from an epoch's row of the history."""
        metric = self.job.data.metric
        if self.train.monitor == "loss":
            return row["val_loss"]
        return -row[f"val_{metric.name}"] if metric.larger_is_better else row[f"val_{metric.name}"]

    @property
    def identity(self) -> str:
        """What a checkpoint must belong to; the config itself is checked when the run is opened."""
        config = self.job.config
        return f"{config.name} {self.name} {config.model.name} {self.job.data.task.outputs} outputs"
