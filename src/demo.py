"""Serves a web page for trying out a run: drop in images and see what it predicts and why."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scenes.console import say
from scenes.environment import ensure_environment
from scenes.script import add_settings_option, run


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the page or, with --export, writes the files of a Hugging Face Space that does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, runs/NAME")
    parser.add_argument("--folds", help="0, 0-4, 0,2,4 or full; by default every trained fold")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on; by default only this machine can connect"
    )
    parser.add_argument("--port", type=int, default=7860, help="7860 by default")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write a Hugging Face Space instead of serving")
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    from scenes.runs import Run

    chosen = Run(arguments.run)
    config = chosen.load_config(arguments.set)
    folds = chosen.chosen_folds(arguments.folds, config.data.folds)

    from scenes.insight.demo import export_space, load_demo, serve

    if arguments.export:
        export_space(chosen, config, folds, arguments.export)
        say(f"wrote {arguments.export}: upload it as a Hugging Face Space, or run python app.py in it to try it")
        return
    serve(load_demo(chosen, config, folds), arguments.host, arguments.port)


if __name__ == "__main__":
    ensure_environment()
    run(main)
