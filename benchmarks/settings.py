"""Measures the gain of each automatic setting over the plain default, by backbone: python benchmarks/settings.py.

    python benchmarks/settings.py [CONFIG …] [--batch 16] [--seconds 2] [--repeats 3]

The plain default is NCHW layout and full precision (with the allocator setting, see allocator.py). This project's
settings are added one after another: channels last, the precision that `auto` chooses on this device, and for
prediction batch norms fused into convolutions. Measured in alternation, A B C A B C …, on a resident random batch, at
each config's image sizes, with its trainable stages, frozen batch norms, and random weights, which take the same time.
A factor is the median over the rounds (range). Takes about 10 minutes on two cores.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from results import hardware, in_turn, ratios, spread, write_section  # noqa: E402
from torch.nn import functional  # noqa: E402

from scenes.config import Config  # noqa: E402
from scenes.config_file import load_config, recipes_of  # noqa: E402
from scenes.console import say  # noqa: E402
from scenes.inference.predict import autocast  # noqa: E402
from scenes.model.backbone import Classifier  # noqa: E402
from scenes.model.depthwise import fast_gradients  # noqa: E402
from scenes.model.device import choose_device, choose_precision  # noqa: E402
from scenes.model.fusion import fuse_batch_norms  # noqa: E402
from scenes.script import run  # noqa: E402
from scenes.training import recipe  # noqa: E402

CLASSES = 6
CONFIGS = ("effnet_lite0", "effnet_b0", "effnet_b3", "effnetv2_s", "resnet50", "convnext_tiny", "dinov2_s", "vgg16")


class Way(NamedTuple):
    """One way to compute."""

    channels_last: bool = False
    precision: str = "fp32"
    fused: bool = False


TRAINING = {"plain": Way(), "channels last": Way(True), "auto": Way(True, "auto")}
PREDICTING = {**TRAINING, "fused": Way(True, "auto", True)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures all configs and writes the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = [ROOT / f"configs/{name}.yaml" for name in CONFIGS]
    parser.add_argument("configs", nargs="*", type=Path, default=files, metavar="CONFIG")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=2, help="minimum length of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args(argv)
    lines = [
        "| config | training, plain, images/s | channels last | auto precision | all "
        "| predicting, plain, images/s | channels last | auto precision | fused | all |",
        "|" + "---|" * 10,
    ]
    for file in arguments.configs:
        config = recipes_of(load_config(file, ["model.weights=none"]))[0]
        cells = [config.name]
        for ways, rate in ((TRAINING, training_rate), (PREDICTING, predicting_rate)):
            measures = {
                name: partial(rate, config, way, arguments.batch, arguments.seconds) for name, way in ways.items()
            }
            cells += factors(in_turn(arguments.repeats, measures))
        lines.append(f"| {' | '.join(cells)} |")
        say(lines[-1])
    about = (
        f"`python benchmarks/settings.py`: batches of {arguments.batch}, median (range) of n = {arguments.repeats}; "
        f"each factor is relative to the column before it. {hardware()}."
    )
    text = "\n".join([about, "", *lines])
    write_section("settings", "What the automatic settings gain", text)


def factors(found: Mapping[str, list[float]]) -> list[str]:
    """Returns the plain rate, the factor of each further step, and the factor of all steps together."""
    rates = list(found.values())
    steps = [spread(ratios(after, before), 2) for before, after in pairwise(rates)]
    return [spread(rates[0]), *steps, spread(ratios(rates[-1], rates[0]), 2)]


def training_rate(config: Config, way: Way, batch: int, seconds: float) -> float:
    """Returns images per second for forward pass, backward pass and step."""
    model, device, images = make(config, way, batch, config.image_size)
    recipe.set_modes(model, recipe.trainable_stages(config.train, 0), frozen_batch_norm=True)
    optimizer = recipe.make_optimizer(model, config.train)
    targets = torch.zeros(batch, dtype=torch.long, device=device)
    precision = choose_precision(way.precision, device)

    def step() -> None:
        with autocast(device, precision), fast_gradients(device):
            logits = model(images)
        functional.cross_entropy(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return batch * per_second(step, seconds, device)


def predicting_rate(config: Config, way: Way, batch: int, seconds: float) -> float:
    """Returns images per second for one view."""
    model, device, images = make(config, way, batch, config.predict_size)
    model.eval()
    if way.fused:
        model.body = fuse_batch_norms(model.body, config.predict_size)
    with torch.inference_mode(), autocast(device, choose_precision(way.precision, device)):
        return batch * per_second(lambda: model(images).float().softmax(-1), seconds, device)


def make(config: Config, way: Way, batch: int, size: int) -> tuple[Classifier, torch.device, torch.Tensor]:
    """Returns a network and a batch of uint8 images, both in the layout of `way`."""
    device = choose_device()
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    model = Classifier(config.model, size, CLASSES).to(device, memory_format=layout)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    return model, device, images.contiguous(memory_format=layout)


def per_second(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Returns how often the work can be done per second, after one warm-up that is not counted."""

    def timed(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed(1)
    times = math.ceil(seconds / timed(1))
    return times / timed(times)


if __name__ == "__main__":
    run(main)
