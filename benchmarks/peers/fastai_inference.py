"""Times fastai's get_preds and tta on some image files: called by benchmarks/inference.py.

    PYTHONPATH=.cache/peers python benchmarks/peers/fastai_inference.py FOLDER out.json --images 512

Writes {"get_preds": seconds, "tta": seconds}; both include opening the files but not making the learner. The weights
are random, which does not affect time.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
from scenes.environment import import_timm

import_timm()  # a CPU-only torch cannot import it otherwise
from fastai.vision.all import ImageDataLoaders, Normalize, Resize, aug_transforms, vision_learner  # noqa: E402


def main() -> None:
    """Predicts under one view and under several."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, required=True, help="how many, repeated if the folder has fewer")
    parser.add_argument("--classes", type=int, default=6)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=150)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()

    files = sorted(arguments.folder.glob("*.jpg"))
    files = [files[i % len(files)] for i in range(arguments.images)]
    table = pd.DataFrame({"name": [file.name for file in files]})
    table["label"] = table.index % arguments.classes
    data = ImageDataLoaders.from_df(
        table,
        arguments.folder,
        item_tfms=Resize(arguments.size),
        batch_tfms=[*aug_transforms(), Normalize.from_stats((0.5,) * 3, (0.5,) * 3)],
        bs=arguments.batch,
    )
    learner = vision_learner(data, arguments.model, pretrained=False, normalize=False)
    seconds = {}
    with learner.no_bar(), learner.no_logging():
        learner.get_preds(dl=data.test_dl(files[: arguments.batch]))  # warms up
        for name, predict in (("get_preds", learner.get_preds), ("tta", learner.tta)):
            start = time.perf_counter()
            predict(dl=data.test_dl(files))
            seconds[name] = time.perf_counter() - start
    arguments.out.write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
