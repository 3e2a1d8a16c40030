"""Trains fastai on one fold, as in its documentation: vision_learner(…).fine_tune(…).

    PYTHONPATH=.cache/peers python benchmarks/peers/fastai_peer.py input folds.csv 0 3 out.json --weights FILE

Writes {"points": [{"seconds": …, "accuracy": …}, …]}, a point after each epoch, in seconds since this process began.
benchmarks/time_to_accuracy.py makes folds.csv and the weights file, and calls this.
"""

import json
import sys
from pathlib import Path

from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from trial import make_parser, point, read_rows

from scenes.environment import import_timm

import_timm()  # a CPU-only torch cannot import it otherwise
from fastai.vision.all import (  # noqa: E402
    Callback,
    Flip,
    ImageDataLoaders,
    RandomResizedCrop,
    Resize,
    accuracy,
    vision_learner,
)

RATE = 2e-3  # fine_tune's default base_lr


class Points(Callback):
    """Records the time and the accuracy after each epoch."""

    order = 60  # after fastai's Recorder

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def after_epoch(self) -> None:
        """Called by fastai."""
        self.found.append(point(float(self.recorder.values[-1][-1])))


class FrozenStatistics(Callback):
    """Keeps the pretrained running statistics of the body's batch norms."""

    def before_train(self) -> None:
        """Called by fastai after it has put the model into training mode."""
        for module in self.model[0].modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def main() -> None:
    """Trains and validates."""
    parser = make_parser(__doc__, RATE)
    parser.add_argument("--tuned", action="store_true", help="frozen statistics, this project's augmentation")
    parser.add_argument("--channels-last", action="store_true", help="the fastest layout for convolutions")
    arguments = parser.parse_args()

    size = arguments.size
    data = ImageDataLoaders.from_df(
        read_rows(arguments),
        arguments.root,
        folder="SceneImages",
        fn_col="image_name",
        label_col="label",
        valid_col="is_valid",
        item_tfms=RandomResizedCrop(size, min_scale=0.6) if arguments.tuned else Resize(size),
        batch_tfms=Flip() if arguments.tuned else None,
        bs=arguments.batch,
    )
    points = Points()
    learner = vision_learner(
        data,
        arguments.model,
        metrics=accuracy,
        cbs=[points, FrozenStatistics()] if arguments.tuned else [points],
        pretrained_cfg_overlay={"file": arguments.weights},
    )
    if arguments.channels_last:
        learner.to_channelslast(use_amp=False)
    learner.fine_tune(arguments.epochs, base_lr=arguments.rate)
    arguments.out.write_text(json.dumps({"points": points.found}))


if __name__ == "__main__":
    main()
