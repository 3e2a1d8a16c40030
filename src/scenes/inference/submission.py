"""From a trained run to a submission Kaggle accepts: checked against test.csv, written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from scenes.config import Config
from scenes.console import Problem, UserError, raise_problems, say
from scenes.data.competition import Table, bad_image_rows, read_test
from scenes.data.folds import fold_name
from scenes.data.images import Images, read_good_images, read_images
from scenes.files import check_folder, keep_old, write_text
from scenes.inference.predict import VIEWS, predict, share_bodies
from scenes.model.device import choose_device, choose_precision
from scenes.model.weights import load_classifier, read_prior
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
    table, images, bad, header = _read(config)
    priors = [read_prior(run.weights_file(fold)) for fold in folds] if bad else []
    probabilities, classes = predict_folds(run, config, folds, images, len(table) - len(bad))
    if bad:
        probabilities = _with_prior(probabilities, list(bad), np.mean(priors, axis=0))
    labels = [classes[best] for best in probabilities.argmax(1)]
    submission = pd.DataFrame(zip(table.names, labels, strict=True), columns=header)
    check_submission(submission, table, classes, config)
    images_column = pd.DataFrame({config.data.image_column: table.names})
    by_class = pd.concat([images_column, pd.DataFrame(probabilities, columns=classes)], axis=1)
    _write(out.with_name(f"{out.stem}_probabilities.csv"), by_class)
    _write(out, submission)
    return out


def _read(config: Config) -> tuple[Table, Images, dict[int, str], list[str]]:
    """Reads and checks all that is predicted.

    Returns:
        The test rows; the images that can be read; why the others cannot, by row, under ``infer.on_bad_image: prior``;
        the submission's column names.
    """
    use_prior = config.infer.on_bad_image == "prior"
    table, problems = read_test(config.data, may_lack_images=use_prior)
    header, sample_problems = _read_sample(table, config)
    problems += sample_problems
    bad: dict[int, str] = {}
    if use_prior:
        images, bad = read_good_images(table, config.image_size, config.data.cache, "test")
        if images is None:
            problems.append(Problem(str(table.csv), "no row has an image that can be read", "check data.image_dir"))
    else:
        images, image_problems = read_images(table, config.image_size, config.data.cache, "test")
        problems += image_problems
    raise_problems(problems)
    assert images is not None
    if bad:
        say(bad_image_rows(table, bad, "predicted by the classes' shares alone, the image cannot be read"))
    return table, images, bad, header


def _with_prior(predicted: np.ndarray, bad: list[int], prior: np.ndarray) -> np.ndarray:
    """Puts rows without an image, which get the class shares of the training rows, among those predicted."""
    filled = np.empty((len(predicted) + len(bad), len(prior)), predicted.dtype)
    filled[bad] = prior
    filled[np.setdiff1d(np.arange(len(filled)), bad)] = predicted
    return filled


def predict_folds(
    run: Run, config: Config, folds: Sequence[int], images: Images, count: int
) -> tuple[np.ndarray, list[str]]:
    """Averages the softmax probabilities of all folds and views.

    Returns:
        float32, shape (count, classes), rows sum to 1; and the classes.

    Raises:
        UserError: If the folds' weights disagree on the classes.
    """
    device = choose_device()
    loaded = [load_classifier(run.weights_file(fold), config) for fold in folds]
    classes = loaded[0][1]
    if strangers := [fold_name(f) for f, (_, other) in zip(folds, loaded, strict=True) if other != classes]:
        raise UserError(f"{run.folder}: {', '.join(strangers)} was trained on other classes than {fold_name(folds[0])}")
    models = [model.to(device, memory_format=torch.channels_last) for model, _ in loaded]
    share_bodies(models)
    views = VIEWS[config.infer.tta]
    names = ", ".join(fold_name(fold) for fold in folds)
    say(f"predicting {count} test images with {names} of {run.name}, views: {', '.join(v.name for v in views)}")
    probabilities = predict(
        models,
        images,
        np.arange(count),
        views,
        config.image_size,
        config.infer.batch_size,
        device,
        choose_precision(config.train.precision, device),
        config.loader.workers,
        "predicting",
    )
    return probabilities.mean((0, 1)), classes


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
    what = f"lists other images than {test.csv} (first: {differ[0] if differ else 'one is repeated'})"
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
        problems.append(Problem("submission", f"its images are not {test.csv}'s, in that order"))
    if unknown := sorted(set(labels) - set(classes)):
        problems.append(Problem("submission", f"has labels that training did not have: {', '.join(unknown[:5])}"))
    problems += _read_sample(test, config)[1]
    raise_problems(problems, "The submission would not be accepted; nothing was written")


def _write(path: Path, table: pd.DataFrame) -> None:
    """Writes a CSV; an older one of other content is kept under a number."""
    text = table.to_csv(index=False, lineterminator="\n")
    if path.exists() and path.read_bytes() != text.encode():
        say(f"{path} was there with other content; it is now {keep_old(path)}")
    write_text(path, text)
    say(f"wrote {path} ({len(table)} rows)")
