"""Trains the folds of experiments: checks the data, fits each fold, scores its held-out rows."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scenes.console import UserError, is_main_process, say
from scenes.environment import ensure_environment
from scenes.script import add_parallel_options, add_settings_option, run

if TYPE_CHECKING:
    from scenes.runs import Run
    from scenes.training.experiment import Experiment


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and, with --submit, writes the submission as infer.py would."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", type=Path, nargs="+", metavar="config", help="an experiment, configs/NAME.yaml")
    parser.add_argument("--folds", help="0, 0-4, 0,2,4 or full (train on every row); by default all folds")
    add_settings_option(parser, "change settings, e.g. train.epochs=5")
    add_parallel_options(parser, "how many folds to train")
    parser.add_argument(
        "--dry-run", action="store_true", help="run two batches of everything and estimate the full run's time"
    )
    parser.add_argument("--submit", action="store_true", help="write submissions/NAME.csv afterwards")
    parser.add_argument(
        "--train-only",
        action="store_true",
        help="no scores, report or submission, for when other processes train other folds",
    )
    arguments = parser.parse_args(argv)

    from scenes.training.workers import end_with_parent

    end_with_parent()

    from scenes.competition.experiment import load_experiment
    from scenes.runs import parse_folds

    configs = [load_experiment(file, arguments.set) for file in arguments.configs]
    names = [config.name for config in configs]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"several of these experiments would write to runs/{repeated.pop()}; train them one at a time")
    folds = [parse_folds(arguments.folds or f"0-{each.data.folds - 1}", each.data.folds) for each in configs]

    from scenes.training.crossval import cross_validate, dry_run
    from scenes.training.experiment import Experiment, train_folds
    from scenes.training.workers import make_slots

    experiments = [
        Experiment(file, arguments.set, config, chosen)
        for file, config, chosen in zip(arguments.configs, configs, folds, strict=True)
    ]

    def conclude(experiment: Experiment) -> None:
        trained = cross_validate(experiment.config, experiment.folds, scores=not arguments.train_only)
        if not arguments.train_only and is_main_process():
            report_and_submit(experiment, trained, arguments.submit)

    if arguments.dry_run:
        for experiment in experiments:
            dry_run(experiment.config, experiment.folds)
    elif slots := make_slots(arguments.parallel, sum(len(each.folds) for each in experiments), arguments.ray_address):
        train_folds(experiments, slots, conclude)
    else:
        for experiment in experiments:
            conclude(experiment)


def report_and_submit(experiment: "Experiment", trained: "Run", wants_submission: bool) -> None:
    """Writes the report and the submission of a trained run, and says what to do next."""
    from scenes.competition.rows import test_source
    from scenes.runs import FULL

    config, folds = trained.load_config(), experiment.folds  # the run's config: a recipe may change sizes and views
    scored = " (scores: metrics.json, held-out probabilities: oof.csv)" if trained.metrics_file.exists() else ""
    say(f"everything about this run: {trained.folder}/{scored}")
    if config.report:
        from scenes.insight.report import try_write

        try_write(trained)
    if not test_source(config.data):
        say(f"no {config.data.root / config.data.test_csv} and no sample submission: nothing to predict")
    elif wants_submission:
        from scenes.inference.submit import submit

        # Folds can be trained one at a time; the submission uses all that are finished.
        path = submit(trained, config, folds if FULL in folds else trained.finished_folds(config.data.folds))
        say(f"next: upload {path} to Kaggle, or try another config of configs/")
    else:
        say(f"next: python src/infer.py --run {trained.folder}")


if __name__ == "__main__":
    ensure_environment()
    run(main)
