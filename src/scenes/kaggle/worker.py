"""Predicts the test images with some folds on one GPU, a file for each: what `kernel.infer` starts for each GPU."""

import argparse
import time
from pathlib import Path

import numpy as np

from scenes.config import Config
from scenes.console import run, say
from scenes.data.folds import fold_name, parse_folds
from scenes.environment import ensure_environment
from scenes.files import write_atomic
from scenes.runs import Run
from scenes.training.process import end_with_parent


def main() -> None:
    """Reads the command line and predicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--folds", required=True)
    parser.add_argument("--parts", type=Path, required=True, help="where the files go")
    parser.add_argument("--until", type=float, required=True, help="start no fold that would end later, in Unix time")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    end_with_parent()
    source = Run(arguments.run)
    config = source.load_config(arguments.set)
    predict_parts(source, config, parse_folds(arguments.folds, config.data.folds), arguments.parts, arguments.until)


def predict_parts(source: Run, config: Config, folds: list[int], parts: Path, until: float) -> None:
    """Writes float32 probabilities of shape (1, views, n, classes), and the classes, for one fold after another.

    The first fold is always predicted; a later one only if the time is enough for as long as the one before took.
    """
    from scenes.inference.submit import predict_each, read_inputs

    inputs = read_inputs(config)
    took = 0.0
    for fold in folds:
        start = time.time()
        if took and start + took > until:
            say(f"{fold_name(fold)}: not started, it would not be ready in time")
            continue
        predicted, classes = predict_each(source, config, [fold], inputs)
        write_atomic(part_file(parts, fold), lambda path: _save(path, predicted, classes))  # noqa: B023 - called at once
        took = time.time() - start


def part_file(parts: Path, fold: int) -> Path:
    """Where a fold's probabilities go."""
    return parts / f"{fold_name(fold)}.npz"


def _save(path: Path, predicted: np.ndarray, classes: list[str]) -> None:
    with path.open("wb") as file:
        np.savez(file, predicted=predicted, classes=np.array(classes))


if __name__ == "__main__":
    ensure_environment()
    run(main)
