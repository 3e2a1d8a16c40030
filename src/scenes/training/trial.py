"""Trains one fold of a sweep's trial; `sweep` runs this in a child process.

The exit codes are those of train.py, plus 4 if the trial's settings cannot be trained, e.g. because the loss diverges.
A full disk, which is not the settings' fault, still gives code 2.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scenes.console import UserError
from scenes.environment import ensure_environment
from scenes.script import add_settings_option, report, run
from scenes.training.workers import end_with_parent

CANNOT_TRAIN = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Trains the fold and scores it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--fold", type=int, required=True)
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    end_with_parent()

    from scenes.competition.experiment import load_experiment
    from scenes.training.crossval import cross_validate

    try:
        cross_validate(load_experiment(arguments.config, arguments.set), [arguments.fold])
    except UserError as error:
        report(error)
        sys.exit(CANNOT_TRAIN)


if __name__ == "__main__":
    ensure_environment()
    run(main)
