"""Predicts the test images with a trained run, averaging folds and views, and writes a submission.

With --images it predicts any number of other images, on one machine or a Ray cluster, and writes parquet files.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from scenes.console import UserError
from scenes.environment import ensure_environment
from scenes.script import add_settings_option, run


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the submission and the probabilities, or the parquet files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run's folder, runs/NAME; by default the run that finished last")
    parser.add_argument("--folds", help="0, 0-4, 0,2,4 or full; by default every trained fold")
    parser.add_argument("--tta", help="none, hflip, multiscale, five_crop, all or auto; by default infer.tta")
    parser.add_argument(
        "--out", type=Path, help="the submission, by default submissions/NAME.csv; with --images a folder"
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER|LIST",
        help="predict the images in a folder, or those listed in a text file",
    )
    parser.add_argument(
        "--ray-address", metavar="HOST:PORT", help="with --images: a Ray cluster; by default this machine"
    )
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    if arguments.images and not arguments.out:
        raise UserError("--images needs --out DIR, a folder for the parquet files")
    if arguments.ray_address and not arguments.images:
        raise UserError("--ray-address works only with --images")
    if arguments.images and (missing := [name for name in ("ray", "pyarrow") if not find_spec(name)]):
        raise UserError(f"--images needs {' and '.join(missing)}: pip install ray==2.60.0 pyarrow==26.0.1")

    from scenes.runs import chosen_run

    chosen = chosen_run(arguments.run)
    views = [f"infer.tta={arguments.tta}"] if arguments.tta else []
    config = chosen.load_config(arguments.set + views)
    folds = chosen.chosen_folds(arguments.folds, config.data.folds)

    if arguments.images:
        from scenes.inference.at_scale import predict_at_scale

        predict_at_scale(chosen, config, folds, arguments.images, arguments.out, arguments.ray_address)
        return
    from scenes.inference.submit import submit

    submit(chosen, config, folds, arguments.out)


if __name__ == "__main__":
    ensure_environment()
    run(main)
