"""Predicts the test images with one fold: what `kernel.infer` runs on each GPU."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scenes.environment import ensure_environment
from scenes.files import write_atomic
from scenes.script import add_settings_option, run
from scenes.training.workers import end_with_parent


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the fold's predictions, float32 of shape (1, views, n, classes), and the classes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--fold", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="an .npz file")
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    end_with_parent()

    import numpy as np

    from scenes.inference.models import run_task
    from scenes.inference.submit import predict_each, read_inputs
    from scenes.runs import Run

    source = Run(arguments.run)
    config = source.load_config(arguments.set)
    inputs = read_inputs(config, run_task(source, config, [arguments.fold]))
    predicted, classes = predict_each(source, config, [arguments.fold], inputs)

    def save(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, predicted=predicted, classes=np.array(classes))

    write_atomic(arguments.out, save)


if __name__ == "__main__":
    ensure_environment()
    run(main)
