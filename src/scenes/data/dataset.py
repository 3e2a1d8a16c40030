"""All data of a run, read and checked once: rows, labels, decoded images, folds, decisions, soft targets."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from scenes.competition.decisions import decide, decision_problems, read_near_duplicates
from scenes.competition.metric import Metric, competition_metric
from scenes.competition.rows import (
    Table,
    bad_image_rows,
    class_labels,
    overlap,
    read_test,
    read_train,
    test_source,
)
from scenes.competition.submission import check_submission_form
from scenes.competition.table import some
from scenes.competition.targets import read_targets, task_kind
from scenes.competition.task import Number, Task
from scenes.config import Config, DataConfig
from scenes.console import Problem, raise_problems, say
from scenes.data.folds import given_folds, group_rows, keep_rare_classes, make_folds, write_or_compare
from scenes.data.images import Images, read_good_images, read_images, unreadable_rows
from scenes.data.soft_targets import JoinedImages, SoftTargets, read_soft_targets
from scenes.runs import FULL, Run


@dataclass(frozen=True)
class Dataset:
    """A run's training data, the same for every fold.

    Attributes:
        table: The n training rows.
        task: What is to be predicted.
        targets: Each row's target, in the task's form.
        metric: What scores predictions.
        images: Their images.
        groups: int64, shape (n,): rows of the same group share a fold.
        fold_of: int64, shape (n,): each row's fold, or ALWAYS_TRAINED.
        skipped: Image name and reason of each row left out because its image cannot be read.
        soft: By fold, probabilities to train on instead of labels.
        test_images: The test rows' images, if some soft targets are for them.
    """

    table: Table
    task: Task
    targets: np.ndarray
    metric: Metric
    images: Images
    groups: np.ndarray
    fold_of: np.ndarray
    skipped: list[tuple[str, str]] = field(default_factory=list)
    soft: Mapping[int, SoftTargets] = field(default_factory=dict)
    test_images: Images | None = None

    def rows(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows a fold trains on and those it holds out (none for the full model), int64."""
        everything = np.arange(len(self.table))
        if fold == FULL:
            return everything, everything[:0]
        return everything[self.fold_of != fold], everything[self.fold_of == fold]

    def training_rows(self, fold: int) -> np.ndarray:
        """The rows a fold trains on, int64; test images with soft targets are numbered after those of train.csv."""
        soft = self.soft[fold].rows if fold in self.soft else np.empty(0, np.int64)
        return np.concatenate([self.rows(fold)[0], soft[soft >= len(self.table)]])

    def training_outputs(self, fold: int, rows: np.ndarray) -> np.ndarray:
        """The outputs a fold trains the network towards, for some of its `training_rows`: float32, (rows, outputs)."""
        if fold not in self.soft:
            return self.task.as_outputs(self.targets[rows])
        outputs = np.zeros((len(rows), self.task.outputs), np.float32)
        is_labelled = rows < len(self.table)
        outputs[is_labelled] = self.task.as_outputs(self.targets[rows[is_labelled]])
        places = self.soft[fold].places(rows)
        outputs[places >= 0] = self.soft[fold].outputs[places[places >= 0]]
        return outputs

    @property
    def training_images(self) -> Images | JoinedImages:
        """The images training draws from, by row as in `training_rows`."""
        return JoinedImages(self.images, self.test_images) if self.test_images else self.images

    def fold_table(self) -> pd.DataFrame:
        """The content of folds.csv."""
        columns = {
            "image_name": self.table.names,
            "label": self.task.as_texts(self.targets),
            "pixels": self.images.pixel_hashes,
            "group": self.groups,
            "fold": self.fold_of,
        }
        return pd.DataFrame(columns)


def read_dataset(config: Config) -> Dataset:
    """Reads and checks the data, decodes all images and splits the rows into folds.

    Raises:
        UserError: Listing all problems.
    """
    data = config.data
    if data.sample:
        from scenes.competition.sample import draw

        draw(data.root)
    table, task, targets, images, skipped = read_rows_and_images(config)
    metric = competition_metric(config, task)
    groups = group_rows(*_groupings(data, table, images, skipped))
    if data.fold_column:
        fold_of = given_folds(table, data.fold_column, data.folds, groups)
    else:
        fold_of = make_folds(task.strata(targets), groups, data.folds, data.fold_seed)
    # After the split, so that dropping a row moves no other row to a different fold.
    rows, targets = decide(table, targets, class_labels(task), data)
    table, images, groups, fold_of = table.take(rows), images.take(rows), groups[rows], fold_of[rows]
    if task.kind == "number" and len(targets):
        task = Number.of(task.columns[0], targets)  # a dropped outlier must not set the scale
    if task.kind == "classes":
        fold_of, rare = keep_rare_classes(targets, groups, fold_of, 0 if data.fold_column else data.folds)
        if rare:
            say(_rare_classes(task, rare))
    left_out = [*data.drop, *data.relabel, *(name for name, _ in skipped)]  # a person's decision overrides a model's
    soft, test_images = _read_soft_targets(config, table, task, fold_of, left_out) if data.soft_targets else ({}, None)
    return Dataset(table, task, targets, metric, images, groups, fold_of, skipped, soft, test_images)


def reopen_dataset(run: Run, config: Config) -> Dataset:
    """Reads a trained run's data again, without soft targets.

    Args:
        run: The run.
        config: Its config, perhaps with different data paths.

    Raises:
        UserError: If the data cannot be used, or is not what the run was trained on.
    """
    data = config.data.model_copy(update={"soft_targets": None})
    dataset = read_dataset(config.model_copy(update={"data": data}))
    write_or_compare(run.folds_file, dataset.fold_table())
    return dataset


def read_rows_and_images(config: Config) -> tuple[Table, Task, np.ndarray, Images, list[tuple[str, str]]]:
    """Reads the CSVs and decodes all images, including the test images, so that bad ones are found before training.

    Returns:
        The training rows, what is to be predicted, their targets, their images; and (name, reason) of each row left
        out because of its image.

    Raises:
        UserError: Listing all problems.
    """
    data, size = config.data, config.largest_size
    table, (task, targets, _), problems = read_train(config)
    test = None
    if test_source(data):
        test, test_problems = read_test(data, may_lack_images=config.infer.on_bad_image == "prior")
        form_problems = check_submission_form(config, task, test) if task and not problems else []
        problems += test_problems + overlap(table, test) + form_problems
    reasons: dict[int, str] = {}
    # A dropped row needs no readable image; without one it is left out of the split, as on_bad_image: skip does.
    exempt = set(table.names if data.on_bad_image == "skip" else data.drop)
    if exempt:
        images, reasons = read_good_images(table, size, data, "training")
        problems += unreadable_rows(table, {row: why for row, why in reasons.items() if table.names[row] not in exempt})
    else:
        images, image_problems = read_images(table, size, data, "training")
        problems += image_problems
    if test and config.infer.on_bad_image == "error":
        problems += read_images(test, size, data, "test")[1]
    skipped = [(table.names[row], why) for row, why in reasons.items()]
    if reasons and not problems:
        say(bad_image_rows(table, reasons, "left out of training and scoring, the image cannot be read"))
        table = table.take([row for row in range(len(table)) if row not in reasons])
        task, targets, problems = read_targets(table, data, task_kind(config))
        if task:  # a class may have lost all its images
            problems += decision_problems(table, class_labels(task), data, [name for name, _ in skipped])
            problems += check_submission_form(config, task, test) if test else []
        if not len(table):
            problems.append(Problem(str(table.file), "no row has an image that can be read", f"see {data.image_dir}"))
    raise_problems(problems)
    assert images is not None
    assert task is not None
    return table, task, targets, images, skipped


def _groupings(
    data: DataConfig, table: Table, images: Images, skipped: list[tuple[str, str]]
) -> Iterator[Sequence[str] | np.ndarray]:
    """Yields what rows can have in common that must not be split between folds."""
    yield images.pixel_hashes
    if data.id_column and data.id_column not in table.columns:
        say(f"{table.file} has no column {data.id_column!r}: its rows are named by {data.image_column!r}")
    elif data.id_column and data.id_column != data.image_column:  # images with the same id get one prediction
        yield table.columns[data.id_column].tolist()
    if data.group_column:
        yield table.columns[data.group_column].tolist()
    if data.near_duplicates:
        yield read_near_duplicates(data.root / data.near_duplicates, table.names, [name for name, _ in skipped])


def _rare_classes(task: Task, rare: list[int]) -> str:
    names = [task.names[target] for target in rare]
    return (
        f"{len(names)} of {task.outputs} classes train in every fold and have no held-out score, "
        f"as they have too few rows or a single group: {some(names)}"
    )


def _read_soft_targets(
    config: Config, table: Table, task: Task, fold_of: np.ndarray, left_out: Collection[str]
) -> tuple[dict[int, SoftTargets], Images | None]:
    """Reads the soft targets, and the test images if some are for them."""
    data, test, images = config.data, None, None
    if test_source(data):
        test, problems = read_test(data)
        images, image_problems = read_images(test, config.largest_size, data, "test")
        raise_problems(problems + image_problems)
    assert data.soft_targets
    soft = read_soft_targets(data.root / data.soft_targets, table, test, task, fold_of, left_out)
    extra = sum(int((targets.rows >= len(table)).sum()) for targets in soft.values())
    listed = sum(len(targets.rows) for targets in soft.values())
    say(f"soft targets, per fold: {(listed - extra) // len(soft)} training rows, {extra // len(soft)} test images")
    return soft, images if extra else None
