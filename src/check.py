"""Examines a competition's data before training: classes, files, duplicates, labels, outliers, train vs. test."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scenes.environment import ensure_environment
from scenes.script import add_settings_option, run


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a summary and writes an HTML page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="configs/NAME.yaml")
    parser.add_argument("--out", type=Path, default=Path("check.html"), help="the HTML page; by default check.html")
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    from scenes.competition.experiment import load_experiment

    config = load_experiment(arguments.config, arguments.set)

    from scenes.insight.check import check

    check(config, arguments.out)


if __name__ == "__main__":
    ensure_environment()
    run(main)
