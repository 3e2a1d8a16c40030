"""Searches for better settings: Optuna over a declared space, scored by log loss on two folds; resumable."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from scenes.console import UserError, say
from scenes.environment import ensure_environment
from scenes.script import add_parallel_options, add_settings_option, run

SPACE = Path(__file__).resolve().parents[1] / "configs/sweeps/finetune.yaml"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the trials and writes the best config."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="an experiment, configs/NAME.yaml")
    parser.add_argument(
        "--space", type=Path, default=SPACE, help="the search space; by default configs/sweeps/finetune.yaml"
    )
    parser.add_argument("--trials", type=int, default=30, help="how many in total, including those before a stop")
    parser.add_argument("--folds", default="0,1", help="the folds to evaluate each trial on; by default %(default)s")
    add_settings_option(parser, "change settings of every trial")
    add_parallel_options(parser, "how many trials to train")
    arguments = parser.parse_args(argv)

    from scenes.competition.experiment import load_experiment
    from scenes.runs import FULL, parse_folds

    if not find_spec("optuna"):
        raise UserError("sweep.py needs Optuna: pip install optuna==5.0.0")
    folds = parse_folds(arguments.folds, load_experiment(arguments.config, arguments.set).data.folds)
    if FULL in folds or arguments.trials < 1:
        raise UserError("--folds needs folds with held-out rows, e.g. 0,1; --trials must be at least 1")

    from scenes.training.sweep import sweep
    from scenes.training.workers import gpu_count, local_slots, make_slots

    slots = make_slots(arguments.parallel, arguments.trials, arguments.ray_address) or local_slots(1, gpu_count())
    best = sweep(arguments.config, arguments.set, arguments.space, arguments.trials, folds, slots)
    say(f"the best settings: {best}\nnext: bash train.sh {best}")


if __name__ == "__main__":
    ensure_environment()
    run(main)
