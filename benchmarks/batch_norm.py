"""Why batch norm in training mode costs accuracy: the same weights under other statistics.

    python benchmarks/ablations.py configs/effnet_lite0.yaml --only "batch norm in training mode"
    python benchmarks/batch_norm.py runs/effnet_lite0.batch-norm-in-training-mode

Were the running statistics at fault, others would mend it: ImageNet's, or those estimated anew, on whole training
images or on crops of them. Scored are the rows each fold held out, under the plain view at training's image size.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from results import hardware, write_section  # noqa: E402

from scenes.competition.metric import log_losses, standard_error  # noqa: E402
from scenes.competition.scores import with_error  # noqa: E402
from scenes.data.augment import AugmentedImages  # noqa: E402
from scenes.data.batches import EvalImages, Sample  # noqa: E402
from scenes.inference.predict import predict_as_configured  # noqa: E402
from scenes.inference.views import PLAIN  # noqa: E402
from scenes.model.backbone import Classifier  # noqa: E402
from scenes.model.weights import load_classifier  # noqa: E402
from scenes.runs import Run  # noqa: E402
from scenes.script import run  # noqa: E402
from scenes.training.job import Job, prepare  # noqa: E402

ROWS, BATCH = 2048, 64  # to estimate statistics on


def main() -> None:
    """Scores the run's folds under each kind of statistics and writes their section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="trained with train.batch_norm: batch")
    trained = Run(parser.parse_args().run)
    config = trained.load_config(["infer.image_size=null"])
    job = prepare(config, [0])
    scores: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    folds = trained.finished_folds(config.data.folds)
    for fold in folds:
        for name in ("those it trained with", "ImageNet's", "estimated on whole images", "estimated on crops"):
            model = load_classifier(trained.weights_file(fold), config)  # load_folds would fuse the batch norms
            model.to(job.device, memory_format=torch.channels_last)
            change(model, name, job, fold)
            scores.setdefault(name, []).append(judge(model, job, fold))
    lines = ["| statistics | accuracy | log loss |", "|---|---|---|"]
    for name, parts in scores.items():
        cells = [np.concatenate(values) for values in zip(*parts, strict=True)]
        told = " | ".join(with_error(float(cell.mean()), standard_error(cell)) for cell in cells)
        lines.append(f"| {name} | {told} |")
    about = (
        f"`python benchmarks/batch_norm.py {trained.folder}`: folds {', '.join(map(str, folds))}, "
        f"{len(cells[0])} held-out rows, plain view at {config.image_size} px. {hardware()}."
    )
    text = "\n".join([about, "", *lines])
    write_section(f"batch norm {trained.name}", "Batch norm that trained, under other statistics", text)


def change(model: Classifier, name: str, job: Job, fold: int) -> None:
    """Gives a trained model other running statistics, in place."""
    rows = np.random.default_rng(0).choice(job.data.rows(fold)[0], ROWS)
    size = job.config.image_size
    batches = rows.reshape(-1, BATCH)
    if name == "ImageNet's":
        known = {key: value for key, value in (job.pretrained or {}).items() if "running" in key}
        model.body.load_state_dict(model.body.state_dict() | known)
    elif name == "estimated on whole images":
        whole = EvalImages(job.data.images, rows, [size])
        estimate(model, (whole.__getitems__(range(at, at + BATCH)).canvases[size] for at in range(0, ROWS, BATCH)))
    elif name == "estimated on crops":
        crops = AugmentedImages(job.data.images, job.config.augment, size, 0, fold)
        estimate(model, (crops.__getitems__([Sample(int(row), 0) for row in batch]).images for batch in batches))


def estimate(model: Classifier, batches: Iterable[torch.Tensor]) -> None:
    """Sets the running statistics to the mean of the batches' own."""
    model.eval()
    for module in model.body.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.no_grad():
        for batch in batches:
            model.features(batch.permute(0, 3, 1, 2))


def judge(model: Classifier, job: Job, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each held-out row is right, and its log loss."""
    held = job.data.rows(fold)[1]
    probabilities = predict_as_configured(job.config, [model], job.data.images, held, [PLAIN], job.device)[0, 0]
    targets = job.data.labels.targets[held]
    return (probabilities.argmax(1) == targets).astype(float), log_losses(probabilities, targets)


if __name__ == "__main__":
    run(main)
