"""Every setting and its default on one screen; experiment files are validated against it."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Stages = Literal["all"] | Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Pixels = Annotated[int, Field(ge=16, le=4096)]


class Section(BaseModel):
    """A section of the config: immutable, rejects unknown keys, no lossy conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _check_type(cls, value: object, info: ValidationInfo) -> object:
        """Rejects what pydantic would convert (true to 1) or explain in its own terms (an empty section)."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool:
            raise ValueError("must not be true or false")
        if isinstance(kind, type) and issubclass(kind, Section) and not isinstance(value, kind | dict):
            raise ValueError("expected a section: indent its `key: value` lines below it, or remove it")
        return value


class DataConfig(Section):
    """Where the competition's files are and how rows are split."""

    root: Path = Path("input")  # the other paths are relative to it, unless absolute
    train_csv: Path = Path("train.csv")  # or COCO-style JSON, or a path pattern such as train/{label}/{file}
    test_csv: Path = Path("test.csv")  # likewise; if missing, the sample submission lists the test rows
    sample_submission: Path = Path("sample_submission.csv")  # used if it exists
    image_dir: Path = Path("SceneImages")
    test_image_dir: Path | None = None  # defaults to image_dir
    image_suffix: str = ""  # ".jpg" if the CSV names images without it
    image_column: str = "image_name"
    image_pattern: str | None = None  # "{chain}/{image}": builds the path from columns if no column has it
    id_column: str | None = None  # a submission's ids, defaults to image_column; images with the same id share a fold
    label_column: str = "label"
    label_columns: list[str] | None = None  # several 0/1 columns, instead of label_column
    label_separator: Annotated[str, Field(min_length=1)] | None = None  # " " if a cell holds several labels
    class_names: list[str] | None = None  # display names, in the order of the sorted labels
    submission_labels: dict[str, str] = {}  # {cat: 0, dog: 1}: what a submission has in place of these labels
    group_column: str | None = None  # rows of the same group share a fold
    near_duplicates: Path | None = None  # check.py's near_duplicates.csv: rows of the same group share a fold
    drop: list[str] = []  # training images to leave out, by name in the CSV; relabel.py writes drop and relabel
    relabel: dict[str, str] = {}  # {image name: label}, overrides the CSV
    soft_targets: Path | None = None  # distill.py's CSV: probabilities instead of labels, and test images to train on
    on_bad_image: Literal["error", "skip"] = "error"  # skip: train without rows whose image is missing or damaged
    fold_column: str | None = None  # your own folds, numbered from 0
    folds: Annotated[int, Field(ge=2, le=1000)] = 5
    fold_seed: Annotated[int, Field(ge=0, lt=2**32)] = 42  # not `seed`: models of all seeds share the folds
    pixel_range: tuple[float, float] | None = None  # [black, white] of images with more than 8 bits, such as [0, 4095]
    cache: Path = Path(".cache")  # decoded images and frozen features, shared by all runs
    sample: bool = False  # draw the built-in sample competition into root if it is not there

    @field_validator("*")
    @classmethod
    def _expand_home(cls, value: object) -> object:
        """Expands ``~``, which a shell leaves alone in ``key=~/…``."""
        return Path(os.path.expanduser(value)) if isinstance(value, Path) else value  # noqa: PTH111 - never raises

    @field_validator("pixel_range")
    @classmethod
    def _check_order(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value and not value[0] < value[1]:
            raise ValueError("black comes first and must be less than white")
        return value

    @field_validator("drop", "relabel", "submission_labels", mode="before")
    @classmethod
    def _to_text(cls, value: object) -> object:
        """Turns numbers into text: names and labels are text in the CSV, even if YAML reads them as 7 or 7.0."""
        if isinstance(value, list):
            return [_as_text(item) for item in value]
        if isinstance(value, dict):
            return {_as_text(name): _as_text(label) for name, label in value.items()}
        return value


class ModelConfig(Section):
    """The network: a timm body and a head."""

    name: str = "tf_efficientnet_lite0.in1k"  # any timm model, or simple_cnn
    weights: str = "hub"  # hub (local copies first) | local (never the network) | none | a file
    pool: Literal["avg", "max", "avgmax"] | None = None  # defaults to the model's own
    hidden: Annotated[int, Field(ge=0, le=65_536)] = 0  # width of a hidden layer in the head; 0: a linear head
    dropout: Fraction = 0.0  # before each linear layer of the head
    drop_path: Fraction = 0.0  # stochastic depth of the body, timm's drop_path_rate

    @field_validator("weights")
    @classmethod
    def _expand_home(cls, value: str) -> str:
        return os.path.expanduser(value)  # noqa: PTH111 - never raises


class TrainConfig(Section):
    """How a fold is trained."""

    epochs: Annotated[int, Field(ge=0, le=10_000)] = 3  # 0 with linear_probe: only the probe
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64  # rows per optimiser step
    accumulate: Annotated[int, Field(ge=1)] = 1  # micro-batches each step is split into, to save memory
    linear_probe: bool = True  # the head starts as a logistic regression on features (LP-FT), if these are fixed
    trainable_stages: Stages | dict[Annotated[int, Field(ge=0)], Stages] = "all"  # the body's last N, or {epoch: N}
    batch_norm: Literal["auto", "frozen", "batch"] = "auto"  # auto: pretrained statistics stay frozen, see docs
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 2e-4
    head_lr: Annotated[float, Field(gt=0)] | None = None  # defaults to lr
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # each stage's lr is this times that of the stage above it
    weight_decay: Annotated[float, Field(ge=0)] = 0.05  # not on biases and norms
    momentum: Fraction = 0.9  # for sgd
    schedule: Literal["cosine", "one_cycle", "plateau", "constant"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0, le=10_000)] = 0.3  # linear; one_cycle rises for 30 % of training
    plateau_patience: Annotated[int, Field(ge=0)] = 2  # plateau: epochs without a better loss before lr × 0.1
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    label_smoothing: Fraction = 0.1
    mixup: Annotated[float, Field(ge=0)] = 0.0  # of Beta(mixup, mixup); 0: off
    cutmix: Annotated[float, Field(ge=0)] = 0.0  # likewise; with both on, each micro-batch gets one of them
    class_weights: Literal["balanced"] | list[Annotated[float, Field(gt=0)]] | None = None
    average_epochs: Annotated[int, Field(ge=1)] = 1  # average the weights after each of the last N epochs
    early_stopping: Annotated[int, Field(ge=1)] | None = None  # patience in epochs; the CV is then optimistic
    monitor: Literal["loss", "metric"] = "loss"  # what early stopping and plateau watch on the held-out rows
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where it is fast, fp16 on older GPUs
    compile: bool = False  # torch.compile, for long runs on a GPU: the first step of each kind takes minutes
    deterministic: bool = False  # on a GPU: slower, but a resumed run gives the same bytes; on a CPU it always does
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0  # in addition to the end of each epoch
    time_budget_minutes: Annotated[float, Field(gt=0)] | None = None  # then save and stop, exit code 3
    wandb: str | None = None  # a Weights & Biases project


class LoaderConfig(Section):
    """How batches are loaded; never changes a result."""

    workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = "auto"  # auto: 0 on a CPU, one per core on a GPU


class InferConfig(Section):
    """How images are turned into predictions."""

    tta: Literal["auto", "none", "hflip", "multiscale", "five_crop", "all"] = "auto"  # auto: as `symmetry` allows
    image_size: Pixels | None = None  # defaults to that of training; larger suits models trained on crops (FixRes)
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # as train.precision
    on_bad_image: Literal["error", "prior"] = "error"  # prior: class frequencies for unreadable test images


class Config(Section):
    """One experiment."""

    name: str = ""  # the run is runs/NAME; defaults to the file's stem
    task: Literal["classes", "labels", "number"] | None = None  # what is predicted; by default, what the labels are
    metric: str | None = None  # accuracy, log_loss, roc_auc, map@5, …; by default the task's usual one
    symmetry: Literal["mirror", "none", "all"] = "mirror"  # keeps an image's label; all: quarter turns too
    submission: Literal["labels", "probabilities", "ranking", "sets", "number"] | None = None  # by default the metric's
    seed: int = 0
    recipe: Literal["auto", "near", "far"] = "auto"  # which of the next two; auto: a linear probe chooses
    near: dict[str, Any] = {}  # {train.lr: 4e-4}, also image sizes and augment, for images like the pretraining data
    far: dict[str, Any] = {}  # for images unlike it; keys given by --set override both
    image_size: Pixels = 150  # square
    augment: Literal["none", "light", "medium", "strong"] | list[str | dict[str, dict[str, Any]]] = "light"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    loader: LoaderConfig = LoaderConfig()
    infer: InferConfig = InferConfig()
    selected_on: list[str] = []  # runs whose held-out scores chose these settings or labels: the CV is then optimistic
    report: bool = True  # report.html at the end of training

    @property
    def predict_size(self) -> int:
        """The image size for prediction, in pixels."""
        return self.infer.image_size or self.image_size

    @property
    def largest_size(self) -> int:
        """The largest image size the run needs, in pixels; decoded images are cached for it."""
        return max(self.image_size, self.predict_size)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", name, re.ASCII):
            raise ValueError(
                "a run's name, by default the file's, must start with a letter or digit and contain only letters, "
                "digits, . _ - (at most 100)"
            )
        return name

    @model_validator(mode="after")
    def _check_combinations(self) -> "Config":
        train = self.train
        if train.linear_probe and self.model.hidden:
            raise ValueError("train.linear_probe needs a linear head: set model.hidden: 0 or train.linear_probe: false")
        if train.epochs == 0 and not train.linear_probe:
            raise ValueError("train.epochs: 0 trains nothing without train.linear_probe: true")
        if train.accumulate > train.batch_size:
            raise ValueError("train.accumulate is larger than train.batch_size")
        if train.average_epochs > 1 and train.early_stopping:
            raise ValueError("train.early_stopping needs train.average_epochs: 1, as its last epochs are unknown")
        return self


def _as_text(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
