"""From a trained run to a submission Kaggle accepts: checked against test.csv, written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from scenes.competition.rows import Table, bad_image_rows, read_test
from scenes.config import Config
from scenes.console import Problem, UserError, raise_problems, say
from scenes.data.folds import fold_name
from scenes.data.images import Images, read_good_images, read_images
from scenes.files import check_folder, write_result
from scenes.inference.models import chosen_ensemble, load_folds
from scenes.inference.predict import predict_as_configured
from scenes.model.device import choose_device
from scenes.model.weights import read_prior
from scenes.runs import Run

SUBMISSIONS = Path("submissions")


def submit(run: Run, config: Config, folds: Sequence[int], out: Path | None = None) -> Path:
    """Predicts the test rows with the mean over folds and views, and writes the submission.

    Args:
        run: A run with these folds trained.
        config: The run's config, perhaps with other data or views.
        folds: Which models.
        out: Where to; by default ``submissions/NAME.csv``. Beside it go the probabilities.

    Returns:
        The submission's path.

    Raises:
        UserError: If test.csv, an image, a fold's weights or the result is not as it must be.
    """
    out = out or SUBMISSIONS / f"{run.name}.csv"
    check_folder(out.parent)  # known before the work, not after
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file in it, e.g. --out {out / run.name}.csv")
    inputs = read_inputs(config)
    prior = mean_prior(run, folds) if inputs.bad else None
    probabilities, classes = predict_folds(run, config, folds, inputs)
    submission, by_class = make_tables(config, inputs, probabilities, classes, prior)
    write_table(out.with_name(f"{out.stem}_probabilities.csv"), by_class)
    write_table(out, submission)
    return out


class Inputs(NamedTuple):
    """All that is predicted.

    Attributes:
        table: The test rows.
        images: Those of their images that can be read.
        bad: Why the others cannot, by row; only under ``infer.on_bad_image: prior``.
        header: The submission's column names.
    """

    table: Table
    images: Images
    bad: dict[int, str]
    header: list[str]

    @property
    def readable(self) -> int:
        """How many images can be read."""
        return len(self.table) - len(self.bad)


def read_inputs(config: Config) -> Inputs:
    """Reads and checks all that is predicted.

    Raises:
        UserError: With the list of all that is wrong.
    """
    use_prior = config.infer.on_bad_image == "prior"
    table, problems = read_test(config.data, may_lack_images=use_prior)
    header, sample_problems = _read_sample(table, config)
    problems += sample_problems
    bad: dict[int, str] = {}
    if use_prior:
        images, bad = read_good_images(table, config.predict_size, config.data, "test")
        if images is None:
            problems.append(Problem(str(table.file), "no row has an image that can be read", "check data.image_dir"))
    else:
        images, image_problems = read_images(table, config.predict_size, config.data, "test")
        problems += image_problems
    raise_problems(problems)
    assert images is not None
    if bad:
        say(bad_image_rows(table, bad, "predicted by the classes' shares alone, the image cannot be read"))
    return Inputs(table, images, bad, header)


def mean_prior(run: Run, folds: Sequence[int]) -> np.ndarray:
    """What is known of an image that cannot be read: the class shares of the training rows, float32, (classes,)."""
    return np.mean([read_prior(run.weights_file(fold)) for fold in folds], axis=0)


def make_tables(
    config: Config, inputs: Inputs, probabilities: np.ndarray, classes: Sequence[str], prior: np.ndarray | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Makes the submission and the table of probabilities, and checks the first.

    Args:
        config: The run's config.
        inputs: What was predicted.
        probabilities: float32, shape (inputs.readable, classes).
        classes: The labels.
        prior: float32, shape (classes,): for the rows whose image cannot be read.

    Raises:
        UserError: If Kaggle would not accept the submission.
    """
    table = inputs.table
    if prior is not None:
        probabilities = _with_prior(probabilities, list(inputs.bad), prior)
    labels = [classes[best] for best in probabilities.argmax(1)]
    submission = pd.DataFrame(zip(table.names, labels, strict=True), columns=inputs.header)
    check_submission(submission, table, classes, config)
    images_column = pd.DataFrame({config.data.image_column: table.names})
    return submission, pd.concat([images_column, pd.DataFrame(probabilities, columns=list(classes))], axis=1)


def _with_prior(predicted: np.ndarray, bad: list[int], prior: np.ndarray) -> np.ndarray:
    """Puts rows without an image, which get the class shares of the training rows, among those predicted."""
    filled = np.empty((len(predicted) + len(bad), len(prior)), predicted.dtype)
    filled[bad] = prior
    filled[np.setdiff1d(np.arange(len(filled)), bad)] = predicted
    return filled


def predict_folds(run: Run, config: Config, folds: Sequence[int], inputs: Inputs) -> tuple[np.ndarray, list[str]]:
    """Predicts with all folds and views: their calibrated mean.

    Returns:
        float32, shape (inputs.readable, classes), rows sum to 1; and the classes.

    Raises:
        UserError: If the folds' weights disagree on the classes, or a prediction is not finite.
    """
    predicted, classes = predict_each(run, config, folds, inputs)
    return chosen_ensemble(run, config).combine(predicted), classes


def predict_each(run: Run, config: Config, folds: Sequence[int], inputs: Inputs) -> tuple[np.ndarray, list[str]]:
    """Predicts with each fold under each view; arguments and errors as `predict_folds`'.

    Returns:
        float32, shape (folds, views, inputs.readable, classes); and the classes.
    """
    device = choose_device()
    models, classes = load_folds(run, config, folds, device)
    views = chosen_ensemble(run, config).views
    trained, seen = ", ".join(map(fold_name, folds)), ", ".join(view.name for view in views)
    say(f"predicting {inputs.readable} test images with {trained} of {run.name}, views: {seen}")
    names = [name for row, name in enumerate(inputs.table.names) if row not in inputs.bad]
    rows = np.arange(inputs.readable)
    return predict_as_configured(config, models, inputs.images, rows, views, device, "predicting", names), classes


def _read_sample(test: Table, config: Config) -> tuple[list[str], list[Problem]]:
    """Finds the submission's column names, the sample submission's if there is one, and how that differs from test.csv.

    Raises:
        UserError: If the sample is no table of two columns.
    """
    path = config.data.root / config.data.sample_submission
    if not path.exists():
        return [config.data.image_column, config.data.label_column], []
    try:
        sample = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except ValueError as error:  # pandas' own are, and what is not UTF-8
        raise UserError(f"{path}: not readable as a CSV ({error}); get it again, or remove it") from None
    if sample.shape[1] != 2:
        raise UserError(f"{path}: has {sample.shape[1]} columns, expected an image column and a label column")
    header, names = sample.columns.astype(str).tolist(), sample.iloc[:, 0].tolist()
    if sorted(names) == sorted(test.names):
        return header, []
    differ = sorted(set(names) ^ set(test.names))
    what = f"lists other images than {test.file} (first: {differ[0] if differ else 'one is repeated'})"
    return header, [Problem(str(path), what, "use the files of one competition, or remove the sample")]


def check_submission(submission: pd.DataFrame, test: Table, classes: Sequence[str], config: Config) -> None:
    """Checks that a submission has each test row once, in order, with a known label.

    Args:
        submission: Two columns, image and label.
        test: test.csv.
        classes: The allowed labels.
        config: Says where the sample submission is; where it exists it must list the same images.

    Raises:
        UserError: With the list of all that is wrong.
    """
    problems = []
    names, labels = ([str(cell) for cell in submission.iloc[:, column]] for column in (0, 1))
    if names != test.names:
        problems.append(Problem("submission", f"its images are not {test.file}'s, in that order"))
    if unknown := sorted(set(labels) - set(classes)):
        problems.append(Problem("submission", f"has labels that training did not have: {', '.join(unknown[:5])}"))
    problems += _read_sample(test, config)[1]
    raise_problems(problems, "The submission would not be accepted; nothing was written")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV; an older one of other content is kept under a number."""
    write_result(path, table.to_csv(index=False, lineterminator="\n"))
    say(f"wrote {path} ({len(table)} rows)")
