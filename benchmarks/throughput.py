"""Images per second, end to end and by stage, compared with what the machine allows: python benchmarks/throughput.py.

    python benchmarks/throughput.py [CONFIG] [--steps 8] [--repeats 5] [--set KEY=VALUE …]

- Training: a fold's own loop, from cached images to optimiser steps. Its limit: the same network, optimiser, loss,
  precision, layout and batch size on one resident random uint8 batch, in the same process. The first epoch, with
  nothing decoded yet, is computed from the rates.
- Inference: `predict` from cached images and from files. Its limit: the same network on one resident batch.
- Decoding into the cache. Its limit: all cores read and decode the same files in full and throw the pixels away.
  The decoder shrinks large JPEGs for the cache, so with such files its rate can exceed this limit.

Measurements to be compared alternate, A B A B …; a ratio is the median over the pairs (range). torch counts the model
FLOPs; their rate is given as a share of that of a large matrix product in the same precision.

Takes about 5 minutes on two cores. On a GPU, use benchmarks/gpu.py.
"""

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from measure import forward_flops, product_rate, random_images, timed  # noqa: E402
from results import hardware, in_turn, ratios, spread, write_section  # noqa: E402
from torch.nn import functional  # noqa: E402

from scenes.competition.linear_head import fit_classes  # noqa: E402
from scenes.config_file import load_config  # noqa: E402
from scenes.console import say  # noqa: E402
from scenes.data.augment import AugmentedImages  # noqa: E402
from scenes.data.batches import Schedule, StepSampler, train_loader  # noqa: E402
from scenes.data.dataset import read_rows_and_images  # noqa: E402
from scenes.data.decode import CHUNK  # noqa: E402
from scenes.data.images import Images, cache_key, open_images  # noqa: E402
from scenes.inference.predict import autocast, predict_as_configured  # noqa: E402
from scenes.inference.views import PLAIN  # noqa: E402
from scenes.model.backbone import Classifier  # noqa: E402
from scenes.model.depthwise import fast_gradients  # noqa: E402
from scenes.model.device import choose_precision  # noqa: E402
from scenes.model.fusion import fuse_batch_norms  # noqa: E402
from scenes.runs import Run, read_json  # noqa: E402
from scenes.script import add_settings_option, run  # noqa: E402
from scenes.training import recipe  # noqa: E402
from scenes.training.job import Job  # noqa: E402
from scenes.training.loop import train_fold  # noqa: E402
from scenes.training.prepare import prepare  # noqa: E402

WARM_UP = 2  # steps or batches that are not timed


class Bench:
    """Measurements of a config's data and network; all rates are in images per second."""

    def __init__(self, job: Job, steps: int, scratch: Path) -> None:
        self.job, self.config, self.device, self.scratch, self.steps = job, job.config, job.device, scratch, steps
        self.model, self.run = job.new_model().eval(), Run(scratch / "run")
        self.model.body = fuse_batch_norms(self.model.body, self.config.predict_size)  # as infer.py has it
        self.rows = np.resize(np.arange(len(job.data.table)), steps * self.config.infer.batch_size)
        self.precision = choose_precision(self.config.infer.precision, self.device)  # of inference
        self.caches = 0

    def timed(self, work: Callable[[], object]) -> float:
        """Returns how many seconds some work takes."""
        return timed(self.device, work)

    def fresh_cache(self) -> Path:
        """Returns a new, empty folder."""
        self.caches += 1
        return self.scratch / f"cache{self.caches}"

    # Training

    def train(self) -> float:
        """A fold's own loop: rows, augmentation, transfer, step, progress; the very first step is not counted."""
        return train_fold(self.job, self.run, 0, step_limit=self.steps).train

    def train_limit(self) -> float:
        """The recipe's steps on one resident batch."""
        model, config = self.new_model(), self.config.train
        optimizer = recipe.make_optimizer(model, config)
        step = self.training_step(model)

        def steps(count: int) -> None:
            for _ in range(count):
                step()
                if config.clip_norm:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                optimizer.step()
                optimizer.zero_grad()

        steps(WARM_UP)
        return self.steps * config.batch_size / self.timed(lambda: steps(self.steps))

    def new_model(self) -> Classifier:
        """A network in which the stages train that the recipe trains at the start."""
        model, config = self.job.new_model(), self.config.train
        is_pretrained = self.job.pretrained is not None
        recipe.set_modes(model, recipe.trainable_stages(config, 0), recipe.freezes_batch_norm(config, is_pretrained))
        return model

    def training_step(self, model: Classifier) -> Callable[[], None]:
        """Forward and backward pass of one resident batch."""
        config, classes = self.config.train, self.job.data.task.outputs
        images = random_images(config.batch_size, self.config.image_size, self.device)
        targets = torch.randint(0, classes, (config.batch_size,), device=self.device)

        def step() -> None:
            with autocast(self.device, self.job.precision), fast_gradients(self.device):
                logits = model(images)
            functional.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing).backward()

        return step

    def batches(self) -> float:
        """Augmented batches alone, without a network."""
        config = self.config
        schedule = Schedule(self.job.data.rows(0)[0], 1000, config.train.batch_size, config.seed, 0)
        pictures = AugmentedImages(self.job.data.images, config.augment, config.image_size, config.seed, 0)
        steps = StepSampler(schedule, 0)
        loader = iter(train_loader(pictures, steps, config.loader.workers, self.device, 3 * config.image_size**2))
        for _ in range(WARM_UP):
            next(loader)
        return self.steps * config.train.batch_size / self.timed(lambda: [next(loader) for _ in range(self.steps)])

    # Inference

    def predict(self) -> float:
        """The plain view of cached images."""
        return len(self.rows) / self.timed(lambda: self._predict(self.job.data.images))

    def predict_cold(self) -> float:
        """The same, but from files."""
        paths = [self.job.data.table.paths[row] for row in self.rows]
        cache = self.fresh_cache()
        return len(self.rows) / self.timed(lambda: self._predict(self._open(paths, cache), np.arange(len(paths))))

    def predict_limit(self) -> float:
        """The network on one resident batch."""
        batch = self.config.infer.batch_size
        images = random_images(batch, self.config.predict_size, self.device)

        def batches(count: int) -> None:
            with torch.inference_mode(), autocast(self.device, self.precision):
                for _ in range(count):
                    self.model(images).float().softmax(-1)

        batches(1)
        return self.steps * batch / self.timed(lambda: batches(self.steps))

    def _predict(self, images: Images, rows: np.ndarray | None = None) -> None:
        rows = self.rows if rows is None else rows
        predict_as_configured(self.config, [self.model], images, rows, [PLAIN], self.device)

    # Decoding and what comes before the first step

    def _open(self, paths: Sequence[Path], cache: Path) -> Images:
        images, bad = open_images(paths, self.config.largest_size, cache, "training")
        assert images is not None, bad
        return images

    def decode(self) -> float:
        """Decoding into a new cache."""
        cache = self.fresh_cache()
        return len(self.job.data.table) / self.timed(lambda: self._open(self.job.data.table.paths, cache))

    def decode_limit(self) -> float:
        """Decoding on all cores, throwing the pixels away."""
        paths = self.job.data.table.paths
        parts = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]

        def decode(part: Sequence[Path]) -> None:
            for path in part:
                cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)

        def decode_all() -> None:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                for _ in pool.map(decode, parts):
                    pass

        return len(paths) / self.timed(decode_all)

    def check_key(self) -> float:
        """Seconds to check that no file has changed."""
        return self.timed(lambda: cache_key(self.job.data.table.paths, self.config.largest_size))

    def open_warm(self) -> float:
        """Seconds to check that, then open the existing cache and read one image."""
        return self.timed(lambda: self._open(self.job.data.table.paths, self.config.data.cache)[0])

    def read(self) -> float:
        """Seconds to read and check the CSVs, and to open the caches of all images."""
        return self.timed(lambda: read_rows_and_images(self.config))

    def start_up(self) -> float:
        """Seconds a process needs before it looks at the data."""
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import scenes.training.crossval"
        return self.timed(lambda: subprocess.run([sys.executable, "-c", code], check=True))

    def features(self) -> float:
        """The frozen body's features, on which a linear probe is fitted."""
        data = self.config.data.model_copy(update={"cache": self.fresh_cache()})
        config = self.config.model_copy(update={"data": data})
        data = dataclasses.replace(self.job.data, images=self.job.data.images.take(self.rows.tolist()))
        job = dataclasses.replace(self.job, config=config, data=data)
        seconds = self.timed(lambda: job.features)
        self.computed = job.features
        return len(self.rows) / seconds

    def probe(self) -> float:
        """Seconds for the logistic regression on these features."""
        targets, classes = np.unique(self.job.data.targets[self.rows], return_inverse=True)[::-1]
        return self.timed(lambda: fit_classes(self.computed, targets, len(classes), 0))

    def flops(self) -> tuple[float, float]:
        """Floating-point operations per image in training and in inference."""
        sizes = (self.config.image_size, self.config.predict_size)
        training, inference = (forward_flops(self.model, size, self.device) for size in sizes)
        return 3 * training, inference


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "configs/effnet_lite0.yaml")
    parser.add_argument("--steps", type=int, default=8, help="batches per measurement, one of them to warm up")
    parser.add_argument("--repeats", type=int, default=5)
    add_settings_option(parser)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        # The probe is measured separately, on a limited number of images.
        own = [f"data.cache={scratch / 'cache'}", "train.linear_probe=false", "infer.tta=none", "report=false"]
        own += ["recipe=near"]
        config = load_config(arguments.config, [*arguments.set, *own])
        job = prepare(config, [0])
        lines = measure(Bench(job, arguments.steps, scratch), arguments.repeats)
    given = f" --set {' '.join(arguments.set)}" if arguments.set else ""
    batch, size, enlarged = config.train.batch_size, config.image_size, config.predict_size
    about = (
        f"`python benchmarks/throughput.py configs/{arguments.config.name}{given}`: {config.model.name}, "
        f"{job.precision}; training at {size} px in batches of {batch}, predicting at {enlarged} px; "
        f"median (range) of n = {arguments.repeats}. {hardware()}."
    )
    text = "\n".join([about, "", *lines])
    write_section(f"throughput {config.name}", f"Throughput: {config.name}", text)


def measure(bench: Bench, repeats: int) -> list[str]:
    """Measures everything; returns the tables as Markdown."""
    first = bench.train()  # goes first, because memory taken by other measurements is not returned
    needed = read_json(bench.run.time_file(0))["memory"]
    say(f"warmed up: {first:.1f} images/s")
    training = in_turn(repeats, {"own": bench.train, "limit": bench.train_limit})
    predicting = {"own": bench.predict, "files": bench.predict_cold, "limit": bench.predict_limit}
    inference = in_turn(repeats, predicting)
    decoding = in_turn(repeats, {"own": bench.decode, "limit": bench.decode_limit})
    rates = [1 / (1 / a + 1 / b) for a, b in zip(decoding["own"], training["own"], strict=True)]
    of_limit = [
        ("training, decoded before", training["own"], training["limit"]),
        ("training, first epoch with decoding (from the rates)", rates, training["limit"]),
        ("inference, decoded before", inference["own"], inference["limit"]),
        ("inference, from files", inference["files"], inference["limit"]),
        ("decoding into the cache", decoding["own"], decoding["limit"]),
    ]
    lines = ["| | images/s | the limit | of the limit |", "|---|---|---|---|"]
    for name, own, limit in of_limit:
        lines.append(f"| {name} | {spread(own)} | {spread(limit)} | {spread(ratios(own, limit), 3)} |")
    return [*lines, "", *utilisation(bench, training, inference), "", *stages(bench, repeats, needed)]


def utilisation(bench: Bench, training: dict[str, list[float]], inference: dict[str, list[float]]) -> list[str]:
    """Returns the share of the machine's arithmetic throughput that goes into the network."""
    training_flops, inference_flops = bench.flops()
    parts = []
    for what, rates, flops, precision in (
        ("training", training, training_flops, bench.job.precision),
        ("inference", inference, inference_flops, bench.precision),
    ):
        peak = product_rate(precision, bench.device)
        share = statistics.median(rates["own"]) * flops / peak
        rate = f"{share:.1%} of {peak / 1e12:.2f} TFLOP/s in {precision}"
        parts.append(f"{flops / 1e9:.2f} G per image in {what}, {rate}")
    return [f"Model FLOPs, and their rate as a share of a matrix product's: {'; '.join(parts)}."]


def stages(bench: Bench, repeats: int, needed: dict[str, dict[str, int]]) -> list[str]:
    """Measures the cost of each stage by itself."""
    rows = len(bench.job.data.table)
    measures = {
        "start-up: imports, s": (bench.start_up, 1, 1),
        "reading and checking the CSVs, with all caches filled, ms": (bench.read, 1000, 0),
        f"checking that none of {rows} files have changed, ms": (bench.check_key, 1000, 1),
        "the same, then opening their cache and reading one image, ms": (bench.open_warm, 1000, 1),
        "augmented batches alone, images/s": (bench.batches, 1, 0),
        "features of the frozen body, images/s": (bench.features, 1, 1),
        f"linear probe on {len(bench.rows)} of them, s": (bench.probe, 1, 2),
    }
    few = min(repeats, 3)
    lines = [f"| stage | median (range), n = {few} |", "|---|---|"]
    for name, (work, unit, digits) in measures.items():
        lines.append(f"| {name} | {spread([work() * unit for _ in range(few)], digits)} |")
    for stage, peaks in needed.items():
        kinds = ", ".join(f"{kind.removesuffix('_mib').replace('_', ' ')} {mib}" for kind, mib in peaks.items())
        lines.append(f"| peak in {stage}, MiB | {kinds} |")
    return lines


if __name__ == "__main__":
    run(main)
