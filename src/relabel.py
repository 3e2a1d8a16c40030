"""Lists likely label errors for a person to review, and applies the decisions as a new config."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scenes.console import say
from scenes.environment import ensure_environment
from scenes.script import add_settings_option, run


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the review sheet or, with --apply, a config with its decisions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, runs/NAME")
    parser.add_argument("--apply", action="store_true", help="turn the decisions in review.csv into a config")
    parser.add_argument("--accept-all", action="store_true", help="accept every suggestion without review")
    parser.add_argument("--out", type=Path, help="the config; by default configs/NAME_relabelled.yaml")
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    from scenes.runs import Run

    chosen = Run(arguments.run)
    config = chosen.load_config(arguments.set)

    from scenes.insight.relabel import apply_sheet, write_sheet

    if arguments.accept_all or not arguments.apply:
        sheet = write_sheet(chosen, config, arguments.accept_all)
        say(f"wrote {sheet}, and {sheet.with_suffix('.html')} with the images")
    if arguments.apply:
        out = apply_sheet(chosen, config, arguments.out)
        say(f"next: bash train.sh {out}")
    else:
        say(f"next: fill in `decision` (keep, drop or a label), then python src/relabel.py {chosen.folder} --apply")


if __name__ == "__main__":
    ensure_environment()
    run(main)
