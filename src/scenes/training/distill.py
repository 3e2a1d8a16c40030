"""Makes soft targets from trained runs, for a student to train on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scenes.competition.rows import read_test, test_source
from scenes.console import UserError, raise_problems, say
from scenes.data.dataset import reopen_dataset
from scenes.data.folds import write_or_compare
from scenes.data.images import ImageSource, read_images
from scenes.data.soft_targets import ABOUT, JoinedImages, check_names_differ
from scenes.files import check_file
from scenes.inference.models import chosen_ensemble, load_folds
from scenes.inference.predict import predict_as_configured
from scenes.inference.submit import write_table
from scenes.model.device import choose_device
from scenes.runs import Run, fold_name

LABEL_SHARE = 0.5  # of a training row's target; the rest is the teachers'


def write_soft_targets(runs: Sequence[Run], out: Path) -> None:
    """Writes targets for every fold, made by the models that never saw that fold's labels.

    A fold's training rows get the mean of their label and the teachers' probabilities; the test images get the
    teachers' probabilities alone. The teachers were trained on those training rows; what they add to the label is how
    similar the classes are (Hinton et al. 2015, arXiv:1503.02531).

    Args:
        runs: The teachers, with all folds trained on the same rows in the same folds.
        out: A CSV with the columns image_name, fold and one per class.

    Raises:
        UserError: If a run has untrained folds or folds other than the first run's, or an image cannot be read.
    """
    check_file(out)
    configs = [run.load_config() for run in runs]
    largest = max(config.largest_size for config in configs)  # every teacher sees images as sharp as in its run
    config = configs[0].model_copy(update={"image_size": largest})
    folds = range(config.data.folds)
    for run in runs:
        if missing := [fold_name(fold) for fold in folds if not run.is_finished(fold)]:
            raise UserError(f"{run.folder}: {', '.join(missing)} not trained; a teacher needs all folds")
    data = reopen_dataset(runs[0], config)
    for run in runs[1:]:
        write_or_compare(run.folds_file, data.fold_table())
    images: ImageSource = data.images
    test = None
    if test_source(config.data):
        test, problems = read_test(config.data)
        check_names_differ(data.table, test, test.names)
        test_images, image_problems = read_images(test, largest, config.data, "test")
        raise_problems(problems + image_problems)
        assert test_images is not None
        images = JoinedImages(data.images, test_images)
    names = np.array([*data.table.names, *(test.names if test else [])], object)
    is_number = data.task.kind == "number"
    truth = data.targets[:, None] if is_number else data.task.as_outputs(data.targets)
    tables = []
    for fold in folds:
        train = data.rows(fold)[0]
        rows = np.concatenate([train, np.arange(len(data.table), len(names))])
        taught = np.mean([_teach(run, fold, images, rows, data.task.columns) for run in runs], axis=0)
        taught[: len(train)] = LABEL_SHARE * truth[train] + (1 - LABEL_SHARE) * taught[: len(train)]
        about = pd.DataFrame(dict(zip(ABOUT, (names[rows], fold), strict=True)))
        tables.append(pd.concat([about, pd.DataFrame(taught, columns=data.task.columns)], axis=1))
    write_table(out, pd.concat(tables))


def _teach(run: Run, fold: int, images: ImageSource, rows: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Predicts with a teacher; returns the mean over its views, float32, shape (rows, classes)."""
    config, device = run.load_config(), choose_device()
    models = load_folds(run, config, [fold], device)
    if models[0].task.columns != list(classes):
        raise UserError(f"{run.folder}: {fold_name(fold)} was trained on different classes")
    say(f"{run.name}, {fold_name(fold)}: {len(rows)} images")
    chosen, label = chosen_ensemble(run, config), f"{run.name} {fold_name(fold)}"
    return chosen.combine(predict_as_configured(config, models, images, rows, chosen.views, device, label))
