"""Writes soft targets: what trained runs predict for the training and test images, for another run to train on."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from scenes.console import say
from scenes.environment import ensure_environment
from scenes.script import run


def main(argv: Sequence[str] | None = None) -> None:
    """Predicts with every fold of the teachers and writes one CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="the teachers, with the same folds: runs/a runs/b …")
    parser.add_argument("--out", type=Path, help="default: soft_targets.csv in the first run's folder")
    arguments = parser.parse_args(argv)
    out = arguments.out or arguments.runs[0] / "soft_targets.csv"

    from scenes.runs import Run
    from scenes.training.distill import write_soft_targets

    teachers = [Run(folder) for folder in arguments.runs]
    write_soft_targets(teachers, out)
    path = os.path.relpath(out.resolve(), teachers[0].load_config().data.root.resolve())
    say(f"next: bash train.sh configs/NAME.yaml --set {shlex.quote(f'data.soft_targets={path}')} name=STUDENT")


if __name__ == "__main__":
    ensure_environment()
    run(main)
