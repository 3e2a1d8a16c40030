"""Predicts any image files, without a cache and with at most three batches of images in memory."""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, tee
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from rich.cells import cell_len, set_cell_size

from scenes.competition.find import image_files
from scenes.config import Config
from scenes.console import Problem, UserError, progress, raise_problems, say
from scenes.data.decode import BadImageError, decode_all
from scenes.data.images import kept_short_side
from scenes.files import check_file, keep_different, write_atomic
from scenes.inference.models import ChosenEnsemble, chosen_ensemble, load_folds
from scenes.inference.predict import NotFiniteError, predict
from scenes.model.backbone import Classifier
from scenes.model.device import choose_device, choose_precision
from scenes.runs import Run, fold_name

BATCHES_AHEAD = 2  # decoded while the model predicts one
VALUE = {"classes": "confidence", "labels": "probability", "number": "value"}  # what an output's value is called

# A file with its pixels or probabilities, or the reason why there are none.
Result = tuple[Path, np.ndarray | str]


class Guess(NamedTuple):
    """An output with its prediction: its label, its readable name, and the probability or number."""

    label: str
    name: str
    value: float


class Prediction(NamedTuple):
    """One image's most probable classes or labels, best first, or its number."""

    path: Path
    guesses: list[Guess]


def find_images(places: Sequence[Path]) -> list[Path]:
    """Lists the given files and, for each folder, all files below it with an image suffix, sorted.

    Raises:
        UserError: If a place does not exist, or a folder contains no image.
    """
    found: list[Path] = []
    problems = []
    for place in places:
        if os.path.isdir(place):  # noqa: PTH112 - False where pathlib raises, e.g. for a name that is too long
            inside = sorted(place / file for file in image_files(place))
            found += inside
            if not inside:
                problems.append(Problem(str(place), "no image in this folder or below it"))
        elif os.path.isfile(place):  # noqa: PTH113 - as above
            found.append(place)
        else:
            problems.append(Problem(str(place), "no such image or folder", "quote paths that contain spaces"))
    raise_problems(problems, "Nothing was predicted")
    return found


def predict_files(
    models: Sequence[Classifier],
    chosen: ChosenEnsemble,
    config: Config,
    paths: Sequence[Path],
    top: int,
    bad: list[Problem],
    label: str = "",
) -> Iterator[Prediction]:
    """Predicts image files as infer.py predicts test images, batch by batch and in order.

    Args:
        models: The networks whose probabilities are averaged, on one device.
        chosen: The views, whose probabilities are also averaged, and the calibration.
        config: The run's config.
        paths: The files.
        top: How many classes to return for each.
        bad: Gets the files that cannot be predicted, which are left out.
        label: A label for the progress lines; empty for none.

    Yields:
        One prediction for each readable file.
    """
    classes, names = models[0].task.columns, models[0].task.names
    batch_size = config.infer.batch_size
    batches: Iterable[list[Result]] = predict_batches(models, chosen, config, paths)
    if label:
        batches = progress(batches, -(-len(paths) // batch_size), label, "img", batch_size)
    for batch in batches:
        for path, row in batch:
            if isinstance(row, str):
                bad.append(Problem(shown(path), row))
                continue
            best = np.argsort(-row, kind="stable")[:top]
            yield Prediction(path, [Guess(classes[at], names[at], float(row[at])) for at in best])


def predict_batches(
    models: Sequence[Classifier], chosen: ChosenEnsemble, config: Config, paths: Iterable[Path]
) -> Iterator[list[Result]]:
    """Predicts image files batch by batch, in order, while the next ones are being decoded.

    Args:
        models: The networks whose probabilities are averaged, on one device.
        chosen: The views, whose probabilities are also averaged, and the calibration.
        config: The run's config.
        paths: The files.

    Yields:
        The files of each batch, with their predictions, float32, shape (outputs,), or the reason why there are none.
    """
    device = models[0].mean.device
    precision = choose_precision(config.infer.precision, device)
    size, batch_size = config.predict_size, config.infer.batch_size
    for batch in decode_batches(paths, config):
        images = [image for _, image in batch if not isinstance(image, str)]
        if not images:
            yield batch
            continue
        rows = np.arange(len(images))
        try:
            # The images are already decoded, so there is nothing for worker processes to do.
            predicted = predict(models, images, rows, chosen.views, size, batch_size, device, precision, workers=0)
        except NotFiniteError as error:
            predicted = error.predictions
        found = iter(chosen.combine(predicted))
        yield [(path, image if isinstance(image, str) else _checked(next(found))) for path, image in batch]


def _checked(row: np.ndarray) -> np.ndarray | str:
    return row if np.isfinite(row).all() else "the prediction is not a finite number; try infer.precision: fp32"


def decode_batches(paths: Iterable[Path], config: Config) -> Iterator[list[Result]]:
    """Decodes files, some batches ahead, to the pixels that the image cache would hold.

    Args:
        paths: The files.
        config: The run's config.

    Yields:
        The files of each batch, with their RGB pixels, uint8, shape (h, w, 3), or the reason why there are none.
    """
    named, files = tee(paths)
    short_side, batch_size = kept_short_side(config.largest_size), config.infer.batch_size
    decoded = decode_all(files, short_side, config.data.pixel_range, ahead=BATCHES_AHEAD * batch_size)
    results = zip(named, decoded, strict=True)
    while batch := list(islice(results, batch_size)):
        yield [
            (path, f"cannot be read as an image ({image})" if isinstance(image, BadImageError) else image.pixels)
            for path, image in batch
        ]


def written(path: Path | str) -> str:
    """A path as text that can be written even if the path is not UTF-8."""
    return str(path).encode(errors="backslashreplace").decode()


def shown(path: Path) -> str:
    """A path as one line for the terminal, with control characters escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in written(path))


def write_table(predictions: Iterable[Prediction], file: TextIO, paths: Sequence[Path], top: int, kind: str) -> None:
    """Writes a line for each image: its path, the best output with its value, then the runners-up."""
    width = max(cell_len(shown(path)) for path in paths)
    what = {"classes": "class", "labels": "label", "number": "number"}[kind]
    order = ", most probable first" if top > 1 else ""
    file.write(f"{set_cell_size('image', width)}  {what} and {VALUE[kind]}{order}\n")
    for path, guesses in predictions:
        cells = "   ".join(f"{guess.name} {guess.value:.4f}" for guess in guesses)
        file.write(f"{set_cell_size(shown(path), width)}  {cells}\n")
        file.flush()


def write_csv(predictions: Iterable[Prediction], file: TextIO, paths: Sequence[Path], top: int, kind: str) -> None:
    """Writes a CSV: image, label, class, confidence (see `VALUE`), then label_2, class_2, confidence_2, …."""
    writer = csv.writer(file, lineterminator="\n")
    ends = ["", *(f"_{place}" for place in range(2, top + 1))]
    writer.writerow(["image", *(f"{name}{end}" for end in ends for name in ("label", "class", VALUE[kind]))])
    for path, guesses in predictions:
        writer.writerow([written(path), *(cell for guess in guesses for cell in guess)])


def write_json(predictions: Iterable[Prediction], file: TextIO, paths: Sequence[Path], top: int, kind: str) -> None:
    """Writes a JSON array with an object for each image, each on its own line."""
    file.write("[")
    for number, (path, guesses) in enumerate(predictions):
        best, *_ = ranked = [_as_json(guess, kind) for guess in guesses]
        content = {"image": written(path), **best, "top": ranked}
        file.write(f"{',' if number else ''}\n{json.dumps(content, ensure_ascii=False)}")
    file.write("\n]\n")


def _as_json(guess: Guess, kind: str) -> dict[str, Any]:
    return {"label": guess.label, "class": guess.name, VALUE[kind]: round(guess.value, 6)}


Writer = Callable[[Iterable[Prediction], TextIO, Sequence[Path], int, str], None]
FORMATS: dict[str, Writer] = {"table": write_table, "csv": write_csv, "json": write_json}


def report_files(
    run: Run,
    config: Config,
    folds: Sequence[int],
    places: Sequence[Path],
    results: TextIO,
    top: int = 3,
    form: str = "table",
    out: Path | None = None,
) -> None:
    """Predicts files and folders and writes the results as they arrive.

    Args:
        run: A run with these folds trained.
        config: The run's config.
        folds: Which models to use.
        places: Image files and folders.
        results: Where to write, if there is no `out`.
        top: How many classes to write for each image, capped at the number of classes.
        form: One of `FORMATS`.
        out: A file to write to instead.

    Raises:
        UserError: If a place does not exist, or a fold or `out` cannot be used, before anything is written; if an image
            cannot be read, after all others have been written.
    """
    if top < 1:
        raise UserError(f"--top {top}: must be at least 1")
    if out:
        check_file(out)
    paths = find_images(places)
    models = load_folds(run, config, folds, choose_device())
    top, kind = min(top, models[0].task.outputs), models[0].task.kind
    chosen = chosen_ensemble(run, config)
    trained, seen = ", ".join(map(fold_name, folds)), ", ".join(view.name for view in chosen.views)
    say(f"predicting {len(paths)} image{'s' * (len(paths) > 1)} with {trained} of {run.name}, views: {seen}")
    # On a terminal the lines themselves show the progress, and a bar would break them.
    label = "" if not out and results.isatty() else "predicting"
    bad: list[Problem] = []
    predictions = predict_files(models, chosen, config, paths, top, bad, label)
    if out:
        write_atomic(out, lambda temporary: _write_file(temporary, out, form, predictions, paths, top, kind))
        say(f"wrote {out} ({len(paths) - len(bad)} images)")
    else:
        FORMATS[form](predictions, results, paths, top, kind)
        results.flush()
    raise_problems(bad, "Some images could not be predicted; all others are in the results")


def _write_file(
    temporary: Path,
    out: Path,
    form: str,
    predictions: Iterable[Prediction],
    paths: Sequence[Path],
    top: int,
    kind: str,
) -> None:
    """Writes the results; an existing file with different content is kept under a numbered name."""
    with temporary.open("w", encoding="utf-8", newline="") as file:
        FORMATS[form](predictions, file, paths, top, kind)
    keep_different(out, temporary)
