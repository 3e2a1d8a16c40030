"""Turns a trained run into a submission that Kaggle accepts, written atomically."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from scenes.competition.decoding import Decoding
from scenes.competition.metric import competition_metric
from scenes.competition.rows import Table, bad_image_rows, read_test
from scenes.competition.submission import Form, plan_submission
from scenes.competition.task import Task
from scenes.config import Config
from scenes.console import Problem, UserError, raise_problems, say
from scenes.data.images import Images, read_good_images, read_images
from scenes.files import check_folder, write_result
from scenes.inference.models import chosen_ensemble, load_folds, run_task
from scenes.inference.predict import predict_as_configured
from scenes.model.device import choose_device
from scenes.model.weights import read_prior
from scenes.runs import Run, fold_name

SUBMISSIONS = Path("submissions")


def submit(run: Run, config: Config, folds: Sequence[int], out: Path | None = None) -> Path:
    """Predicts the test rows with the mean over folds and views, and writes the submission.

    Args:
        run: A run with these folds trained.
        config: The run's config, possibly with other data or views.
        folds: Which models to use.
        out: The output file, by default ``submissions/NAME.csv``; the probabilities are written beside it.

    Returns:
        The submission's path.

    Raises:
        UserError: If the test rows, an image, the sample submission or a fold's weights cannot be used.
    """
    out = out or SUBMISSIONS / f"{run.name}.csv"
    check_folder(out.parent)  # fail before the work, not after it
    if out.is_dir():
        raise UserError(f"{out} is a folder; name a file in it, e.g. --out {out / run.name}.csv")
    inputs = read_inputs(config, run_task(run, config, folds))
    say(f"{out}: {inputs.form}")
    if inputs.form.doubt:
        say(inputs.form.doubt)
    metric = competition_metric(config, inputs.form.task)
    if config.submission and config.submission != metric.wants:
        say(f"submission: {config.submission}, although the metric {metric.name} is computed from {metric.wants}")
    prior = mean_prior(run, folds) if inputs.bad else None
    predictions = predict_folds(run, config, folds, inputs)
    submission, by_output = make_tables(inputs, predictions, chosen_ensemble(run, config).decoding, prior)
    write_table(out.with_name(f"{out.stem}_probabilities.csv"), by_output)
    write_table(out, submission)
    return out


class Inputs(NamedTuple):
    """The inputs of a submission.

    Attributes:
        table: The test rows.
        images: Their readable images.
        bad: Why the other images cannot be read, by row; only with ``infer.on_bad_image: prior``.
        form: The form of the submission.
    """

    table: Table
    images: Images
    bad: dict[int, str]
    form: Form

    @property
    def readable(self) -> int:
        """How many images can be read."""
        return len(self.table) - len(self.bad)


def read_inputs(config: Config, task: Task) -> Inputs:
    """Reads and checks the inputs of a submission.

    Args:
        config: The run's config.
        task: What the run predicts.

    Raises:
        UserError: With a list of everything that is wrong.
    """
    use_prior = config.infer.on_bad_image == "prior"
    table, problems = read_test(config.data, may_lack_images=use_prior)
    form, form_problems = plan_submission(config, task, table)
    problems += form_problems
    bad: dict[int, str] = {}
    if use_prior:
        images, bad = read_good_images(table, config.largest_size, config.data, "test")
        if images is None:
            problems.append(Problem(str(table.file), "no row has an image that can be read", "check data.image_dir"))
    else:
        images, image_problems = read_images(table, config.largest_size, config.data, "test")
        problems += image_problems
    raise_problems(problems)
    assert images is not None
    assert form is not None
    if bad:
        say(bad_image_rows(table, bad, "whose image cannot be read, predicted as the average training row"))
    return Inputs(table, images, bad, form)


def mean_prior(run: Run, folds: Sequence[int]) -> np.ndarray:
    """The prediction for an unreadable image, such as the class frequencies: float32, shape (outputs,)."""
    return np.mean([read_prior(run.weights_file(fold)) for fold in folds], axis=0)


def make_tables(
    inputs: Inputs, predictions: np.ndarray, decoding: Decoding, prior: np.ndarray | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Makes the submission and the table of predictions.

    Args:
        inputs: What was predicted.
        predictions: float32, shape (inputs.readable, outputs).
        decoding: How they become labels.
        prior: float32, shape (outputs,): the prediction for rows whose image cannot be read.

    Returns:
        The submission; and the test rows' ids with a column for each output.
    """
    names, task = inputs.table.names, inputs.form.task
    if prior is not None:
        predictions = _with_prior(predictions, list(inputs.bad), prior)
    # Joined by position, not by name: a class may have the name of the id column.
    ids = pd.DataFrame({inputs.form.header[0]: names})
    by_output = pd.concat([ids, pd.DataFrame(predictions, columns=task.columns)], axis=1)
    return inputs.form.write(names, predictions, decoding), by_output


def _with_prior(predicted: np.ndarray, bad: list[int], prior: np.ndarray) -> np.ndarray:
    """Inserts the prior for rows without a readable image."""
    filled = np.empty((len(predicted) + len(bad), len(prior)), predicted.dtype)
    filled[bad] = prior
    filled[np.setdiff1d(np.arange(len(filled)), bad)] = predicted
    return filled


def predict_folds(run: Run, config: Config, folds: Sequence[int], inputs: Inputs) -> np.ndarray:
    """Predicts the calibrated mean over all folds and views.

    Returns:
        float32, shape (inputs.readable, outputs).

    Raises:
        UserError: If the folds were trained on different classes, or a prediction is not finite.
    """
    return chosen_ensemble(run, config).combine(predict_each(run, config, folds, inputs)[0])


def predict_each(run: Run, config: Config, folds: Sequence[int], inputs: Inputs) -> tuple[np.ndarray, list[str]]:
    """Predicts with each fold under each view; arguments and errors are those of `predict_folds`.

    Returns:
        float32, shape (folds, views, inputs.readable, outputs); and the labels of the outputs.
    """
    device = choose_device()
    models = load_folds(run, config, folds, device)
    views = chosen_ensemble(run, config).views
    trained, seen = ", ".join(map(fold_name, folds)), ", ".join(view.name for view in views)
    say(f"predicting {inputs.readable} test images with {trained} of {run.name}, views: {seen}")
    names = [name for row, name in enumerate(inputs.table.names) if row not in inputs.bad]
    rows = np.arange(inputs.readable)
    predicted = predict_as_configured(config, models, inputs.images, rows, views, device, "predicting", names)
    return predicted, models[0].task.columns


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV; an existing file with different content is kept under a numbered name."""
    write_result(path, table.to_csv(index=False, lineterminator="\n"))
    say(f"wrote {path} ({len(table)} rows)")
