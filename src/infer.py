"""Predicts the test images with a trained run, test-time augmentation across folds, and writes a submission."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scenes.console import add_settings_option, run, say
from scenes.environment import ensure_environment


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the submission and the probabilities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run's folder, runs/NAME; by default the run that finished last")
    parser.add_argument("--folds", help="0, 0-4, 0,2,4 or full; by default every fold that is trained")
    parser.add_argument("--tta", help="none, hflip, multiscale or five_crop; by default the config's infer.tta")
    parser.add_argument("--out", type=Path, help="the submission's file; by default submissions/NAME.csv")
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    from scenes.runs import Run, newest

    chosen = Run(arguments.run) if arguments.run else newest()
    if not arguments.run:
        say(f"the run that finished last: {chosen.folder}")
    views = [f"infer.tta={arguments.tta}"] if arguments.tta else []
    config = chosen.load_config(arguments.set + views)
    folds = chosen.chosen_folds(arguments.folds, config.data.folds)

    from scenes.inference.submission import submit

    submit(chosen, config, folds, arguments.out)


if __name__ == "__main__":
    ensure_environment()
    run(main)
