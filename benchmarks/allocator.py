"""Measures what glibc's memory settings gain on a CPU: python benchmarks/allocator.py.

The settings: freed memory is kept (src/scenes/model/device.py) and comes in large pages (train.sh). EfficientNet-Lite0
trains in fp32 on resident random images in fresh processes; the settings alternate, because a machine's speed drifts.
Prints images per second, median and range, and the ratio of the medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
BATCH, SIZE, STEPS = 64, 150, 6
SIDES: dict[str, dict[str, str]] = {
    "plain": {},
    "kept": {},
    "kept, in large pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
}


def measure(keeps_memory: bool) -> float:
    """Trains a few steps in this process; returns images per second."""
    sys.path.insert(0, str(SOURCE))
    import torch

    from scenes.config import Config
    from scenes.model.backbone import Classifier
    from scenes.model.device import choose_device
    from scenes.training.recipe import make_optimizer, set_modes

    if keeps_memory:
        choose_device()
    config = Config(name="benchmark")
    model = Classifier(config.model, SIZE, 6).to(memory_format=torch.channels_last)
    set_modes(model, "all", frozen_batch_norm=True)
    optimizer = make_optimizer(model, config.train)
    images = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    targets = torch.zeros(BATCH, dtype=torch.long)
    begun = time.perf_counter()
    for step in range(STEPS + 2):
        if step == 2:  # the first two are warm-up
            begun = time.perf_counter()
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return STEPS * BATCH / (time.perf_counter() - begun)


def main() -> None:
    """Runs the comparison, or, in a child process, one side of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(measure(arguments.side != "plain"))
        return
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(arguments.repeats):
        for side, found in speeds.items():
            command = [sys.executable, __file__, "--side", side]
            environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"} | SIDES[side]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            found.append(float(done.stdout))
    plain = statistics.median(speeds["plain"])
    for side, found in speeds.items():
        middle = statistics.median(found)
        print(
            f"{side}: {middle:.1f} img/s ({min(found):.1f} to {max(found):.1f}, n = {len(found)}), "
            f"{middle / plain:.2f} x plain"
        )


if __name__ == "__main__":
    main()
