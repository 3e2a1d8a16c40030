"""Writes report.html for each run and, for several runs, a page that compares them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scenes.console import say
from scenes.environment import ensure_environment
from scenes.script import add_settings_option, run


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the pages and prints their paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="runs/NAME", help="by default the run that finished last")
    parser.add_argument("--out", type=Path, help="the page; by default runs/NAME/report.html or runs/comparison.html")
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    from scenes.runs import RUNS, Run, newest

    chosen = [Run(folder) for folder in arguments.runs] or [newest()]

    from scenes.insight.comparison import compare
    from scenes.insight.report import write

    if len(chosen) == 1:
        say(f"report: {write(chosen[0], arguments.out, arguments.set)}")
        return
    out = compare(chosen, arguments.out or RUNS / "comparison.html", arguments.set)
    for each in chosen:
        say(f"report: {write(each, overrides=arguments.set)}")
    say(f"comparison: {out}")


if __name__ == "__main__":
    ensure_environment()
    run(main)
