"""Measurements of a device for the benchmarks: time, utilisation, arithmetic throughput."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scenes.model.device import synchronise

PRODUCT_TRIALS = 5  # the best one counts as what the device can do
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Returns how many seconds some work takes, including what a GPU does asynchronously."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def per_second(device: torch.device, work: Callable[[], object], seconds: float, warm_up: int = 2) -> float:
    """Returns how often the work can be done per second, measured over at least `seconds`."""
    for _ in range(warm_up):
        work()
    times = max(1, round(seconds / timed(device, work)))
    return times / timed(device, lambda: [work() for _ in range(times)])


@contextmanager
def gpu_use() -> Iterator[list[float]]:
    """Asks nvidia-smi five times a second how busy the GPU is; yields a list of percentages, empty without a GPU."""
    busy: list[float] = []
    if not torch.cuda.is_available():
        yield busy
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asked:
        try:
            yield busy
        finally:
            asked.terminate()
            assert asked.stdout
            busy += [float(line) for line in asked.stdout if line.strip().isdigit()]


def forward_flops(model: nn.Module, size: int, device: torch.device) -> float:
    """Returns the floating-point operations of one image's forward pass.

    Training is conventionally counted as three times that. It is not measured, because torch 2.13 counts the backward
    pass of grouped convolutions as if they had no groups.
    """
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(image)
    return float(counter.get_total_flops())


@cache
def product_rate(precision: str, device: torch.device) -> float:
    """Returns the floating-point operations per second of a large matrix product, the best of several trials."""
    side, products = (8192, 20) if device.type == "cuda" else (1024, 2)
    left, right = torch.randn(2, side, side, device=device, dtype=TYPES[precision])
    torch.mm(left, right)
    best = min(timed(device, lambda: [torch.mm(left, right) for _ in range(products)]) for _ in range(PRODUCT_TRIALS))
    return products * 2 * side**3 / best


def random_images(count: int, size: int, device: torch.device) -> torch.Tensor:
    """Returns uint8 images, (count, 3, size, size), channels last in memory, as the loader makes them."""
    shape = (count, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)


def image_files(folder: Path) -> list[Path]:
    """Returns all JPEGs below a folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
