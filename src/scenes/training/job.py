"""What all folds of a run share: checked data, decoded images, the folds, pretrained weights, the device."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scenes.competition.rows import (
    Labels,
    Table,
    bad_image_rows,
    decide,
    overlap,
    read_labels,
    read_near_duplicates,
    read_test,
    read_train,
)
from scenes.config import Config, DataConfig
from scenes.console import Problem, UserError, raise_problems, say
from scenes.data.augment import compose
from scenes.data.folds import FULL, fold_name, given_folds, group_rows, make_folds, write_or_compare
from scenes.data.images import Images, read_good_images, read_images, unreadable_rows
from scenes.data.soft_targets import JoinedImages, SoftTargets, read_soft_targets
from scenes.inference.predict import VIEWS
from scenes.model.backbone import Classifier, has_depthwise
from scenes.model.device import choose_device, choose_precision, use_deterministic_algorithms
from scenes.model.weights import pretrained_state
from scenes.runs import Run
from scenes.training.probe import body_features
from scenes.training.recipe import body_is_frozen


@dataclass(frozen=True)
class Job:
    """A run's inputs, the same for every fold.

    Attributes:
        table: The training rows.
        labels: Their targets and the classes.
        images: Their images.
        groups: int64, shape (n,): rows of one group share a fold.
        fold_of: int64, shape (n,): each row's fold.
        pretrained: The body's weights to start from, or None.
        device: Where to compute.
        skipped: Image name and reason of each row left out because its image cannot be read.
        soft: What folds train on in place of labels.
        test_images: The images of test rows among that.
    """

    config: Config
    table: Table
    labels: Labels
    images: Images
    groups: np.ndarray
    fold_of: np.ndarray
    pretrained: dict[str, Tensor] | None
    device: torch.device
    skipped: list[tuple[str, str]] = field(default_factory=list)
    soft: Mapping[int, SoftTargets] = field(default_factory=dict)
    test_images: Images | None = None

    def rows(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows a fold trains on and those it is judged on (none for the full model)."""
        everything = np.arange(len(self.table))
        if fold == FULL:
            return everything, everything[:0]
        return everything[self.fold_of != fold], everything[self.fold_of == fold]

    def training_targets(self, fold: int) -> tuple[np.ndarray, Tensor]:
        """What a fold trains on.

        Returns:
            The rows, those of test images with soft targets counted on behind train.csv's; and the targets of all rows
            by row: int64, shape (n,), or with soft targets float32, shape (n + test rows, classes).
        """
        rows, targets = self.rows(fold)[0], self.labels.targets
        if fold not in self.soft:
            return rows, torch.from_numpy(targets)
        soft, count = self.soft[fold], len(self.table)
        shares = np.zeros((count + len(self.test_images or ()), len(self.labels.classes)), np.float32)
        shares[np.arange(count), targets] = 1
        shares[soft.rows] = soft.probabilities
        return np.concatenate([rows, soft.rows[soft.rows >= count]]), torch.from_numpy(shares)

    @property
    def pictures(self) -> Images | JoinedImages:
        """The images training draws from, by row."""
        return JoinedImages(self.images, self.test_images) if self.test_images else self.images

    def new_model(self) -> Classifier:
        """A network with the pretrained body and a random head, on the device."""
        model = Classifier(self.config.model, self.config.image_size, len(self.labels.classes))
        if self.pretrained:
            model.body.load_state_dict(self.pretrained)
        return model.to(self.device, memory_format=torch.channels_last)

    @property
    def starts_with_probe(self) -> bool:
        """Whether the head starts as a logistic regression; without pretrained features there is nothing to probe."""
        return self.config.train.linear_probe and self.pretrained is not None

    @property
    def trains_on_features(self) -> bool:
        """Whether the body's output for a row never changes, so that only the head need be trained."""
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
        """What predicting computes in, and the features of a frozen body."""
        return choose_precision(self.config.infer.precision, self.device)

    @cached_property
    def features(self) -> np.ndarray:
        """The frozen body's features of all rows, float32, shape (n, f)."""
        config = self.config
        return body_features(
            self.new_model(),
            self.images,
            config.image_size,
            config.infer.batch_size,
            self.device,
            config.loader.workers,
            config.data.cache,
            self.predict_precision,
        )

    def compute_features(self) -> None:
        """Computes and keeps the frozen body's features, if training asks for them."""
        if self.starts_with_probe or self.trains_on_features:
            self.features  # noqa: B018 - kept there

    def fold_table(self) -> pd.DataFrame:
        """The content of folds.csv."""
        columns = {
            "image_name": self.table.names,
            "label": [self.labels.classes[target] for target in self.labels.targets],
            "pixels": self.images.pixel_hashes,
            "group": self.groups,
            "fold": self.fold_of,
        }
        return pd.DataFrame(columns)


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
    if config.data.sample:
        from scenes.competition.sample import draw

        draw(config.data.root)
    table, labels, images, skipped = read_data(config)
    data = config.data
    groups = group_rows(*_groupings(data, table, images, skipped))
    if data.fold_column:
        fold_of = given_folds(table, data.fold_column, data.folds, groups)
    else:
        fold_of = make_folds(labels.targets, groups, data.folds, data.fold_seed)
    rows, labels = decide(table, labels, data)  # after the deal, which no decision about a row may change
    table, images, groups, fold_of = table.take(rows), images.take(rows), groups[rows], fold_of[rows]
    _check_classes(labels, fold_of)
    if config.train.deterministic:
        use_deterministic_algorithms()
    device = choose_device()
    pretrained = pretrained_state(config)
    soft, test_images = _read_soft_targets(config, table, labels, fold_of) if data.soft_targets else ({}, None)
    job = Job(config, table, labels, images, groups, fold_of, pretrained, device, skipped, soft, test_images)
    _check_model(job)
    return job


def reopen(run: Run, config: Config) -> Job:
    """Opens the data of a trained run again, to predict its rows anew; its pretrained weights are not needed.

    Args:
        run: The run.
        config: Its config, perhaps with other data paths or views.

    Raises:
        UserError: If the data cannot be used, or is not what the run was trained on.
    """
    model = config.model.model_copy(update={"weights": "none"})
    train = config.train.model_copy(update={"linear_probe": False})  # which has nothing to look at without weights
    data = config.data.model_copy(update={"soft_targets": None})
    job = prepare(config.model_copy(update={"model": model, "train": train, "data": data}), [0])
    write_or_compare(run.folds_file, job.fold_table())
    return job


def read_data(config: Config) -> tuple[Table, Labels, Images, list[tuple[str, str]]]:
    """Reads the CSVs and decodes all images, the test's too, so that bad ones are known before training.

    Returns:
        The training rows, their labels, their images; and (name, reason) of each row left out for its image.

    Raises:
        UserError: With the list of all that is wrong.
    """
    data, size = config.data, config.largest_size
    folds = None if data.fold_column else data.folds
    table, labels, problems = read_train(data, folds)
    test = None
    if (data.root / data.test_csv).exists():
        test, test_problems = read_test(data, may_lack_images=config.infer.on_bad_image == "prior")
        problems += test_problems + overlap(table, test)
    reasons: dict[int, str] = {}
    # A row that is dropped needs no image that can be read; it then takes no part in the deal of folds, as skip has it.
    spared = set(table.names if data.on_bad_image == "skip" else data.drop)
    if spared:
        images, reasons = read_good_images(table, size, data.cache, "training")
        problems += unreadable_rows(table, {row: why for row, why in reasons.items() if table.names[row] not in spared})
    else:
        images, image_problems = read_images(table, size, data.cache, "training")
        problems += image_problems
    if test and config.infer.on_bad_image == "error":
        problems += read_images(test, size, data.cache, "test")[1]
    skipped = [(table.names[row], why) for row, why in reasons.items()]
    if reasons and not problems:  # what is left must do for all folds
        say(bad_image_rows(table, reasons, "left out of training and scoring, the image cannot be read"))
        table = table.take([row for row in range(len(table)) if row not in reasons])
        labels, problems = read_labels(table, data, folds)
        if not len(table):
            problems.append(Problem(str(table.csv), "no row has an image that can be read", f"see {data.image_dir}"))
    raise_problems(problems)
    assert images is not None
    return table, labels, images, skipped


def _read_soft_targets(
    config: Config, table: Table, labels: Labels, fold_of: np.ndarray
) -> tuple[dict[int, SoftTargets], Images | None]:
    """Reads the soft targets, and the test images where some are for them."""
    data, test, images = config.data, None, None
    if (data.root / data.test_csv).exists():
        test, problems = read_test(data)
        images, image_problems = read_images(test, config.largest_size, data.cache, "test")
        raise_problems(problems + image_problems)
    assert data.soft_targets
    soft = read_soft_targets(data.root / data.soft_targets, table, test, labels.classes, fold_of)
    extra = sum(int((targets.rows >= len(table)).sum()) for targets in soft.values())
    listed = sum(len(targets.rows) for targets in soft.values())
    say(f"soft targets, per fold: {(listed - extra) // len(soft)} training rows, {extra // len(soft)} test images")
    return soft, images if extra else None


def _groupings(
    data: DataConfig, table: Table, images: Images, skipped: list[tuple[str, str]]
) -> Iterator[Sequence[str] | np.ndarray]:
    """What rows can have in common that must not be split between folds."""
    yield images.pixel_hashes
    if data.group_column:
        yield table.columns[data.group_column].tolist()
    if data.near_duplicates:
        yield read_near_duplicates(data.root / data.near_duplicates, table.names, [name for name, _ in skipped])


def _check_options(config: Config, folds: Sequence[int]) -> None:
    """Finds what needs no data to be wrong."""
    if FULL in folds and (config.train.early_stopping or config.train.schedule == "plateau"):
        raise UserError(
            "--folds full holds no rows out to judge epochs by; add --set train.early_stopping=null and, in place of "
            "plateau, train.schedule=cosine"
        )
    train = config.train
    if body_is_frozen(train) and config.augment == "none" and (train.mixup or train.cutmix or train.sizes):
        raise UserError(
            "the body is frozen and nothing is augmented, so the head trains on features: train.mixup, train.cutmix "
            "and train.sizes have no pictures to work on; leave them out, or set augment"
        )
    if config.data.soft_targets and (FULL in folds or not train.epochs or body_is_frozen(train)):
        raise UserError(
            "data.soft_targets are for the folds of a network that trains: leave them out with --folds full, with "
            "train.epochs: 0 and with a frozen body"
        )
    if config.train.wandb and not find_spec("wandb"):
        raise UserError("train.wandb is set, but wandb is not installed: pip install wandb, or leave it out")


def _check_classes(labels: Labels, fold_of: np.ndarray) -> None:
    """Refuses folds in which all rows of a class are held out together, as a group can force them to be."""
    problems = []
    for target, name in enumerate(labels.classes):
        folds = np.unique(fold_of[labels.targets == target])
        if len(folds) == 1:
            what = f"would train without the class {name!r}, whose rows are all in it"
            remedy = "split its group, or choose other folds"
            problems.append(Problem(fold_name(int(folds[0])), what, remedy))
    raise_problems(problems, "The folds cannot be used")


def _check_model(job: Job) -> None:
    """Finds what can only be known once the network and the classes are there."""
    config = job.config
    if isinstance(config.train.class_weights, list) and len(config.train.class_weights) != len(job.labels.classes):
        count = len(config.train.class_weights)
        raise UserError(f"train.class_weights has {count} weights for {len(job.labels.classes)} classes")
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
