"""From cached images to uint8 batches; a training batch's rows depend on the step alone."""

import atexit
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from scenes.console import say
from scenes.data.images import ImageSource
from scenes.environment import usable_cores
from scenes.randomness import key

PREFETCHED = 2  # batches a worker prepares ahead
LEFT_TO_MAIN = (signal.SIGINT, signal.SIGTERM)  # signals that only the main process acts on
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_SHARE = 0.8  # the rest is for other processes


class Sample(NamedTuple):
    """What an augmented training image depends on, besides the seed and the fold.

    Attributes:
        row: The training row.
        epoch: The epoch.
    """

    row: int
    epoch: int


class Schedule:
    """The order of rows: the epochs' permutations, one after another, cut into full batches.

    Every row comes once per epoch; a batch may span two epochs. A run can start at any step.
    """

    def __init__(self, rows: np.ndarray, epochs: int, batch_size: int, seed: int, fold: int) -> None:
        self.rows, self.epochs, self.batch_size, self.seed, self.fold = rows, epochs, batch_size, seed, fold
        self.steps = -(-epochs * len(rows) // batch_size)
        self._order = lru_cache(maxsize=4)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng(key("order", self.seed, self.fold, epoch))
        return self.rows[generator.permutation(len(self.rows))]

    def batch(self, step: int) -> list[Sample]:
        """Lists the samples of one optimiser step."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        cuts = (divmod(position, len(self.rows)) for position in positions)
        return [Sample(int(self._order(epoch)[place]), epoch) for epoch, place in cuts]

    def epoch(self, step: int) -> int:
        """How many epochs are complete before a step."""
        return step * self.batch_size // len(self.rows)

    def ends_epoch(self, step: int) -> int | None:
        """The number, from 1, of the epoch that this step completes; None if it completes none.

        A batch with more rows than the data can complete several: the last one counts.
        """
        done = min(self.epoch(step + 1), self.epochs)
        return done if done > self.epoch(step) else None


class StepSampler(Sampler[list[Sample]]):
    """Yields the batches of the steps from `first` on, or only the samples at `places` of each batch."""

    def __init__(self, schedule: Schedule, first: int, places: Sequence[int] | None = None) -> None:
        self.schedule, self.first = schedule, first
        self.places = range(schedule.batch_size) if places is None else places

    def __iter__(self) -> Iterator[list[Sample]]:
        for step in range(self.first, self.schedule.steps):
            batch = self.schedule.batch(step)
            yield [batch[place] for place in self.places]

    def __len__(self) -> int:
        return self.schedule.steps - self.first


class TrainBatch(NamedTuple):
    """One step's batch: uint8 images (n, size, size, 3), or the crops drawn for them, and their rows, int64."""

    images: torch.Tensor
    rows: torch.Tensor


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes a whole image, (h, w, 3) uint8, to (size, size, 3): nothing is cropped, the aspect ratio may change."""
    if image.shape[:2] == (size, size):
        return image
    shrinks = min(image.shape[:2]) > size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_weights(
    new: torch.Tensor, old: torch.Tensor, ratio: torch.Tensor | float, last: torch.Tensor, shrinks: torch.Tensor
) -> torch.Tensor:
    """The weight of each old pixel in each new one, along one axis, when OpenCV resizes: area to shrink, else linear.

    Args:
        new: Indices of the new pixels, float32, shape (…, m, 1).
        old: Those of the old ones, shape (…, 1, n); any outside 0 … last have no weight.
        ratio: Old pixels per new one.
        last: The index of the last old pixel.
        shrinks: bool: whether to resize by area.

    Returns:
        float32, shape (…, m, n); each row sums to 1.
    """
    covered = torch.minimum((new + 1) * ratio, old + 1) - torch.maximum(new * ratio, old)
    area = covered.clamp(min=0) / ratio
    centre = torch.minimum(((new + 0.5) * ratio - 0.5).clamp(min=0), last)
    linear = (1 - (centre - old).abs()).clamp(min=0)
    return torch.where(shrinks, area, linear)


class EvalBatch(NamedTuple):
    """The same images on one canvas per size: {size: uint8 (n, size, size, 3)}."""

    canvases: dict[int, torch.Tensor]


class EvalImages(Dataset[EvalBatch]):
    """Images for prediction: each is read once, then resized to every size the views need."""

    def __init__(self, images: ImageSource, rows: np.ndarray, sizes: Sequence[int]) -> None:
        self.images, self.rows, self.sizes = images, rows, sorted(set(sizes))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> EvalBatch:
        return self.__getitems__([place])

    def __getitems__(self, places: Sequence[int]) -> EvalBatch:
        """Fills one array per size with a whole batch."""
        canvases = {size: np.empty((len(places), size, size, 3), np.uint8) for size in self.sizes}
        for at, place in enumerate(places):
            image = self.images[self.rows[place]]
            for size, canvas in canvases.items():
                canvas[at] = resize(image, size)
        return EvalBatch({size: torch.from_numpy(canvas) for size, canvas in canvases.items()})


def train_loader(
    images: Dataset[TrainBatch], sampler: StepSampler, workers: int | str, device: torch.device, image_bytes: int
) -> DataLoader[TrainBatch]:
    """Loads training batches of images of up to `image_bytes` bytes."""
    return _loader(images, sampler, workers, device, len(sampler.places) * image_bytes)


def eval_loader(
    images: EvalImages, batch_size: int, workers: int | str, device: torch.device, keep_workers: bool = False
) -> DataLoader[EvalBatch]:
    """Loads images in order; with `keep_workers`, workers end with the loader, not after each pass over the images."""
    starts = range(0, len(images), batch_size)
    batches = [list(range(start, min(start + batch_size, len(images)))) for start in starts]
    batch_bytes = batch_size * sum(size**2 * 3 for size in images.sizes)
    return _loader(images, batches, workers, device, batch_bytes, keep_workers)


def _loader(
    dataset: Dataset[Any],
    batches: Any,
    workers: int | str,
    device: torch.device,
    batch_bytes: int,
    keep_workers: bool = False,
) -> DataLoader[Any]:
    count = fit_shared_memory(worker_count(workers, device), batch_bytes)
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=count,
        prefetch_factor=PREFETCHED if count else None,
        persistent_workers=keep_workers and count > 0,
        collate_fn=_identity,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker if count else None,
        generator=torch.Generator(),  # otherwise starting a loader would draw from the global one
    )


class _Loader(DataLoader[Any]):
    """A loader whose workers no signal can reach before they ignore signals, not even during startup."""

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_MAIN)  # workers inherit this
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_count(workers: int | str, device: torch.device) -> int:
    """Resolves ``auto``: none on a CPU, where the network needs all cores and augmenting costs 1 % of that."""
    if workers != "auto":
        return int(workers)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # a launcher's, on this machine
    return 0 if device.type == "cpu" else min(16, max(1, usable_cores() // processes))


def fit_shared_memory(workers: int, batch_bytes: int) -> int:
    """Lowers the number of workers to what fits into the shared memory that they pass batches through.

    Containers often have only 64 MB of it; a worker that finds no room there dies or waits forever.
    """
    if not workers or sys.platform != "linux":
        return workers
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    fitting = int(free * SHARED_MEMORY_SHARE) // ((PREFETCHED + 1) * max(1, batch_bytes))  # and the one in use
    if fitting < workers:
        needed = (PREFETCHED + 1) * batch_bytes / 2**20
        say(
            f"  {fitting} loader workers instead of {workers}: {SHARED_MEMORY} has {free / 2**20:.0f} MiB free, "
            f"each needs {needed:.1f} MiB (in Docker, --shm-size=8g gives more)"
        )
    return min(workers, fitting)


@atexit.register
def _kill_stuck_workers() -> None:
    """Kills workers that did not end with their loader; Python would wait for them, and they ignore its SIGTERM."""
    for worker in multiprocessing.active_children():
        worker.kill()


def _identity(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """Leaves signals, which reach whole process groups, to the main process: it saves and then ends its workers."""
    for number in LEFT_TO_MAIN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_MAIN)
    cv2.setNumThreads(0)
