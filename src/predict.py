"""Predicts any image files with a trained run: class, confidence and runners-up."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from scenes.environment import ensure_environment
from scenes.script import run


def main(argv: Sequence[str] | None = None) -> None:
    """Predicts files and folders; the results go to stdout, everything else to stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "images",
        nargs="+",
        type=Path,
        metavar="IMAGE|FOLDER",
        help="image files, or folders that are searched recursively",
    )
    parser.add_argument("--run", type=Path, help="a run's folder, runs/NAME; by default the run that finished last")
    parser.add_argument("--folds", help="0, 0-4, 0,2,4 or full; by default every trained fold")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="how many classes to print; 3 by default")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="table by default")
    parser.add_argument("--out", type=Path, metavar="FILE", help="a file for the results; by default stdout")
    arguments = parser.parse_args(argv)

    results = sys.stdout
    with redirect_stdout(sys.stderr):  # so that a pipe gets only the results
        from scenes.runs import chosen_run

        chosen = chosen_run(arguments.run)
        config = chosen.load_config()
        folds = chosen.chosen_folds(arguments.folds, config.data.folds)

        from scenes.inference.files import report_files

        report_files(chosen, config, folds, arguments.images, results, arguments.top, arguments.format, arguments.out)


if __name__ == "__main__":
    ensure_environment()
    run(main)
