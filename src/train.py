"""Trains the folds of an experiment: checks the data, fits each fold, scores what it held out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scenes.console import add_settings_option, run, say
from scenes.environment import ensure_environment


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, and with --submit writes the submission as infer.py would."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="an experiment, configs/NAME.yaml")
    parser.add_argument("--folds", help="0, 0-4, 0,2,4 or full (train on every row); by default all folds")
    add_settings_option(parser, "change settings, e.g. train.epochs=5")
    parser.add_argument("--dry-run", action="store_true", help="two batches of everything, and what the run would take")
    parser.add_argument("--submit", action="store_true", help="write submissions/NAME.csv afterwards")
    arguments = parser.parse_args(argv)

    from scenes.config import load_config
    from scenes.data.folds import FULL, parse_folds

    config = load_config(arguments.config, arguments.set)
    folds = parse_folds(arguments.folds or f"0-{config.data.folds - 1}", config.data.folds)

    from scenes.training.crossval import cross_validate, dry_run

    if arguments.dry_run:
        dry_run(config, folds)
        return
    trained = cross_validate(config, folds)
    say(f"everything about this run: {trained.folder}/ (scores: metrics.json, held-out probabilities: oof.csv)")
    if config.report:
        from scenes.insight.report import try_write

        try_write(trained)
    if not (config.data.root / config.data.test_csv).exists():
        say(f"no {config.data.root / config.data.test_csv}: nothing to predict")
    elif arguments.submit:
        from scenes.inference.submission import submit

        # Folds can be trained one by one; the submission is of all there are.
        path = submit(trained, config, folds if FULL in folds else trained.finished_folds(config.data.folds))
        say(f"next: upload {path} to Kaggle, or try another config of configs/")
    else:
        say(f"next: python src/infer.py --run {trained.folder}")


if __name__ == "__main__":
    ensure_environment()
    run(main)
