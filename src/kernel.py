"""Turns a run into an offline Kaggle kernel: builds it, pushes it, submits it."""

import argparse
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from scenes.console import UserError, say
from scenes.environment import ensure_environment
from scenes.script import add_settings_option, run


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="build a dataset and a kernel in the run's folder")
    push = commands.add_parser(
        "push", help="upload both, follow the kernel, fetch its output (needs the kaggle command)"
    )
    submit = commands.add_parser("submit", help="submit the kernel, or a file, and show the score")
    for command in (build, push, submit):
        what = command.add_mutually_exclusive_group(required=True)
        what.add_argument("--run", type=Path, help="predict with this trained run, runs/NAME")
        what.add_argument("--train", type=Path, metavar="CONFIG", help="train this experiment there, configs/NAME.yaml")
        add_settings_option(command, "change settings, as in train.py")

    build.add_argument("--owner", required=True, metavar="NAME", help="your Kaggle user name")
    build.add_argument("--competition", required=True, metavar="SLUG", help="the last part of its URL")
    build.add_argument("--folds", help="0, 0-4, 0,2,4 or full; by default all trained folds, or with --train all folds")
    build.add_argument("--half", action="store_true", help="half-precision weights; prints how they change the score")
    build.add_argument("--script", action="store_true", help="a script instead of a notebook")
    build.add_argument(
        "--budget-minutes",
        type=float,
        default=510,
        metavar="N",
        help="the kernel's time limit (default: 510; Kaggle allows 540)",
    )
    push.add_argument("--again", action="store_true", help="run the kernel again even if nothing changed")
    submit.add_argument(
        "--file",
        nargs="?",
        type=Path,
        const=True,
        help="upload a file, by default the kernel's submission.csv; without --file the kernel itself is submitted",
    )
    submit.add_argument("--message", help="the submission's description")
    for command in (push, submit):
        command.add_argument("--interval", type=float, default=30, metavar="SECONDS", help="between requests to Kaggle")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the chosen command."""
    args = parse(argv)
    if args.command == "build":
        build(args)
        return
    if not 0 <= args.interval < math.inf:
        raise UserError("--interval must be 0 or more")
    from scenes.kaggle.client import Place, push, submit

    place = Place(_folder(args))
    if args.command == "push":
        push(place, args.interval, args.again)
    else:
        submit(place, args.interval, place.submission if args.file is True else args.file, args.message)


def build(args: argparse.Namespace) -> None:
    """Builds the dataset and the kernel and prints the next command."""
    from scenes.competition.experiment import load_experiment
    from scenes.kaggle.bundle import build, build_training
    from scenes.kaggle.target import Target
    from scenes.runs import Run, parse_folds

    if not 0 < args.budget_minutes < math.inf:
        raise UserError("--budget-minutes must be more than 0")
    if args.train:
        if args.half:
            raise UserError("--half is for the weights of a trained run, not for --train")
        config = load_experiment(args.train, args.set)
        folds = parse_folds(args.folds or f"0-{config.data.folds - 1}", config.data.folds)
        target = Target(args.owner, args.competition, f"{config.name} train")
        out = build_training(config, folds, target, _folder(args), args.script, args.budget_minutes)
        what = shlex.join(["--train", str(args.train), *(["--set", *args.set] if args.set else [])])
    else:
        run = Run(args.run)
        config = run.load_config(args.set)
        folds = run.chosen_folds(args.folds, config.data.folds)
        target = Target(args.owner, args.competition, run.name)
        out = build(run, config, folds, target, args.half, args.script, args.budget_minutes)
        what = shlex.join(["--run", str(args.run)])
    size = sum(file.stat().st_size for file in (out / "dataset").rglob("*") if file.is_file()) / 2**20
    say(f"{out}/dataset: {target.dataset_id}, {size:.1f} MiB")
    say(f"{out}/kernel: {target.kernel_id}, two T4s, no internet")
    say(f"next: python src/kernel.py push {what}")


def _folder(args: argparse.Namespace) -> Path:
    """The folder of the dataset and the kernel; with --train, inside the folder of the future run."""
    if args.run:
        return args.run / "kaggle"
    from scenes.competition.experiment import load_experiment
    from scenes.runs import RUNS

    return RUNS / load_experiment(args.train, args.set).name / "kaggle_train"


if __name__ == "__main__":
    ensure_environment()
    run(main)
