"""Predicts the test images with a trained run, test-time augmentation across folds, and writes a submission.

Or, with --images, any number of images: shard by shard into a folder, which --merge makes one file of.
"""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from scenes.console import UserError, add_settings_option, run, say
from scenes.environment import ensure_environment


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the submission and the probabilities, or a shard, or what the shards are together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run's folder, runs/NAME; by default the run that finished last")
    parser.add_argument("--folds", help="0, 0-4, 0,2,4 or full; by default every fold that is trained")
    parser.add_argument("--tta", help="none, hflip, multiscale or five_crop; by default the config's infer.tta")
    parser.add_argument("--out", type=Path, help="the submission, by default submissions/NAME.csv; the shards' folder")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER|LIST", help="predict these: a folder's, or a text's, one path a line"
    )
    parser.add_argument("--shard", metavar="I/N", help="the I-th of N shards of --images, from 1; by default 1/1")
    parser.add_argument("--merge", type=Path, metavar="DIR", help="check the shards in DIR and make them one file")
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    if (arguments.images or arguments.merge) and not find_spec("pyarrow"):
        raise UserError("--images and --merge need pyarrow: pip install pyarrow==26.0.1")
    if arguments.merge:
        if any(value for option, value in vars(arguments).items() if option != "merge"):
            raise UserError("--merge goes alone: --merge DIR, the --out of the shards")
        from scenes.inference.shards import merge

        merge(arguments.merge)
        return
    if (arguments.images and not arguments.out) or (arguments.shard and not arguments.images):
        raise UserError("--images, --shard and --out go together: --images FOLDER --shard 1/16 --out DIR")

    from scenes.runs import Run, newest

    chosen = Run(arguments.run) if arguments.run else newest()
    if not arguments.run:
        say(f"the run that finished last: {chosen.folder}")
    views = [f"infer.tta={arguments.tta}"] if arguments.tta else []
    config = chosen.load_config(arguments.set + views)
    folds = chosen.chosen_folds(arguments.folds, config.data.folds)

    if arguments.images:
        from scenes.inference.shards import parse_shard, predict_shard

        shard = parse_shard(arguments.shard or "1/1")
        predict_shard(chosen, config, folds, arguments.images, shard, arguments.out)
        return
    from scenes.inference.submit import submit

    submit(chosen, config, folds, arguments.out)


if __name__ == "__main__":
    ensure_environment()
    run(main)
