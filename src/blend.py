"""Blends runs: prints their out-of-fold scores, chooses weights and writes one combined submission."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scenes.console import say
from scenes.environment import ensure_environment
from scenes.script import add_settings_option, run


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates the blend and writes its submission."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders with the same folds: runs/a runs/b …")
    parser.add_argument(
        "--out", type=Path, default=Path("submissions/blend.csv"), help="the submission file; by default %(default)s"
    )
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    from scenes.competition.rows import test_source
    from scenes.inference.blend import evaluate_blend, read_members, submit_blend
    from scenes.runs import Run

    members = read_members([Run(folder) for folder in arguments.runs], arguments.set)
    ensemble = evaluate_blend(members)
    config = members.runs[0].load_config(arguments.set)
    if test_source(config.data):
        submit_blend(members, ensemble, arguments.out, arguments.set)
    else:
        say(f"no {config.data.root / config.data.test_csv} and no sample submission: nothing to predict")


if __name__ == "__main__":
    ensure_environment()
    run(main)
