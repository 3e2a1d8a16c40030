"""From cached images to augmented uint8 batches; which rows, and what happens to them, follows from the step alone."""

import difflib
import inspect
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from scenes.console import UserError
from scenes.data.images import Pictures
from scenes.environment import usable_cores
from scenes.randomness import key

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the package index for news
import albumentations as A

# Natural scenes have an upside and no preferred side: no vertical flips, no quarter turns.
_CROP = {"RandomResizedCrop": {"scale": [0.6, 1.0], "area_for_downscale": "image"}}
_FLIP = {"HorizontalFlip": {"p": 0.5}}
PRESETS: dict[str, list[str | dict[str, dict[str, Any]]]] = {
    "none": [],
    "light": [_CROP, _FLIP],
    "medium": [
        _CROP,
        _FLIP,
        {"ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02, "p": 0.8}},
        {"Affine": {"rotate": [-8, 8], "shear": [-4, 4], "border_mode": cv2.BORDER_REFLECT_101, "p": 0.3}},
    ],
    "strong": [
        {"RandomResizedCrop": {"scale": [0.35, 1.0], "area_for_downscale": "image"}},
        _FLIP,
        {"ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.05, "p": 0.8}},
        {"Affine": {"rotate": [-12, 12], "shear": [-8, 8], "border_mode": cv2.BORDER_REFLECT_101, "p": 0.5}},
        {
            "OneOf": {
                "transforms": [
                    {"GaussianBlur": {"sigma_limit": [0.3, 1.5], "p": 1.0}},
                    {"GaussNoise": {"std_range": [0.02, 0.08], "p": 1.0}},
                    {"ToGray": {"p": 1.0}},
                ],
                "p": 0.3,
            }
        },
        {
            "CoarseDropout": {
                "num_holes_range": [1, 2],
                "hole_height_range": [0.1, 0.35],
                "hole_width_range": [0.1, 0.35],
            }
        },
    ],
}


class Sample(NamedTuple):
    """What a training row's picture depends on, beside the seed and the fold.

    Attributes:
        row: Which.
        epoch: In which epoch.
        begun: The epoch its batch begins in, which decides the batch's image size; by default the same.
    """

    row: int
    epoch: int
    begun: int | None = None


class Schedule:
    """The order of rows: the epochs' permutations, one after another, cut into full batches.

    Every row comes once an epoch; a batch may span two epochs. A run can start at any step.
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
        return [Sample(int(self._order(epoch)[place]), epoch, self.epoch(step)) for epoch, place in cuts]

    def epoch(self, step: int) -> int:
        """How many epochs are complete before a step."""
        return step * self.batch_size // len(self.rows)

    def ends_epoch(self, step: int) -> int | None:
        """The number, from 1, of the epoch that is complete after this step; None within one.

        A batch of more rows than there are can complete several: the last counts.
        """
        done = min(self.epoch(step + 1), self.epochs)
        return done if done > self.epoch(step) else None


class StepSampler(Sampler[list[Sample]]):
    """Yields the batches of the steps from `first` on, or of each batch the samples at `places`."""

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
    """One step's batch: uint8 images of shape (n, size, size, 3) and their rows, int64, shape (n,)."""

    images: torch.Tensor
    rows: torch.Tensor


class AugmentedImages(Dataset[TrainBatch]):
    """Training pictures; each augmentation is a pure function of (seed, fold, epoch, row)."""

    def __init__(
        self,
        images: Pictures,
        augment: str | list[str | dict[str, dict[str, Any]]],
        size: int,
        seed: int,
        fold: int,
        sizes: Mapping[int, int] | None = None,
    ) -> None:
        """Takes the images and what the augmentation follows from.

        Args:
            images: By row.
            augment: A preset's name or a list of transforms, see `compose`.
            size: Pixels.
            seed: The run's.
            fold: Its number.
            sizes: Progressive resizing, other sizes from certain epochs on.
        """
        self.images, self.augment, self.seed, self.fold = images, augment, seed, fold
        self.sizes = {0: size} | dict(sizes or {})
        self._transforms: dict[int, A.Compose] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transforms": {}}

    def size(self, epoch: int) -> int:
        """The image size in an epoch, in pixels."""
        return self.sizes[max(start for start in self.sizes if start <= epoch)]

    def image(self, sample: Sample, size: int | None = None) -> np.ndarray:
        """Augments one image: RGB, uint8, shape (size, size, 3); by default of its epoch's size.

        Raises:
            UserError: If a transform of the user's own list cannot take it, e.g. a distortion one pixel of height.
        """
        seed = key("augment", self.seed, self.fold, sample.epoch, sample.row)
        size = size or self.size(sample.epoch)
        if size not in self._transforms:
            self._transforms[size] = compose(self.augment, size)
        transform = self._transforms[size]
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        cv2.setRNGSeed(seed % 2**31)  # some transforms draw from OpenCV's own generator
        image = self.images[sample.row]
        try:
            return transform(image=image)["image"]
        except Exception as error:  # of albumentations' own kinds, NumPy's and OpenCV's
            shape = f"{image.shape[0]}×{image.shape[1]} pixels"
            raise UserError(f"augment: fails at training row {sample.row + 1} ({shape}): {error!r}") from error

    def __getitem__(self, sample: Sample) -> TrainBatch:
        return self.__getitems__([sample])

    def __getitems__(self, samples: Sequence[Sample]) -> TrainBatch:
        """Fills one array with a whole batch."""
        first = samples[0]
        size = self.size(first.epoch if first.begun is None else first.begun)  # a batch that spans two epochs has one
        pictures = np.empty((len(samples), size, size, 3), np.uint8)
        for place, sample in enumerate(samples):
            pictures[place] = self.image(sample, size)
        return TrainBatch(torch.from_numpy(pictures), torch.tensor([sample.row for sample in samples]))


def compose(augment: str | Sequence[str | dict[str, dict[str, Any]]], size: int) -> A.Compose:
    """Builds an augmentation that ends in size × size pixels.

    Args:
        augment: A preset's name, or a list of albumentations transforms: ``Name`` or ``{Name: {argument: value}}``.
        size: Pixels; given to transforms that need a size and have none.

    Raises:
        UserError: If a transform or an argument does not exist.
    """
    steps = PRESETS[augment] if isinstance(augment, str) else augment
    transforms = [_transform(step, size) for step in steps]
    return A.Compose([*transforms, A.Resize(size, size, area_for_downscale="image")])


def _transform(step: Any, size: int) -> A.BasicTransform | A.BaseCompose:
    """Makes one transform; albumentations only warns of arguments it does not know, here they are errors."""
    name, arguments = next(iter(step.items())) if isinstance(step, dict) and len(step) == 1 else (step, {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise UserError(f"augment: each entry is one transform, Name or {{Name: {{argument: value}}}}; got {step}")
    known = {n: c for n, c in vars(A).items() if inspect.isclass(c) and issubclass(c, A.BasicTransform | A.BaseCompose)}
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3)) or "see albumentations' documentation"
        raise UserError(f"augment: albumentations has no transform {name!r}; {near}")
    factory = known[name]
    arguments = {k: tuple(v) if isinstance(v, list) and k != "transforms" else v for k, v in arguments.items()}
    if isinstance(arguments.get("transforms"), list):
        arguments["transforms"] = [_transform(inner, size) for inner in arguments["transforms"]]
    parameters = inspect.signature(factory.__init__).parameters
    for parameter, value in (("size", (size, size)), ("height", size), ("width", size)):
        if parameter in parameters and parameters[parameter].default is inspect.Parameter.empty:
            arguments.setdefault(parameter, value)
    if "pad_if_needed" in parameters:  # else a crop fails at the first image that is smaller
        arguments.setdefault("pad_if_needed", True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            transform = factory(**arguments)
        if issubclass(factory, A.BasicTransform):
            _try(factory(**arguments | {"p": 1.0}), size)
    except Exception as error:  # of albumentations' own kinds, NumPy's and OpenCV's
        raise UserError(f"augment: {name}: {type(error).__name__}: {error}") from None
    return transform


def _try(transform: A.BasicTransform, size: int) -> None:
    """Raises if a transform makes anything but a uint8 RGB image of one, or wants more than the image."""
    image = np.zeros((3 * size // 2, 3 * size // 2, 3), np.uint8)  # as large as the image cache keeps them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = A.Compose([transform])(image=image)["image"]
    if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape[2:] != (3,):
        raise TypeError("does not make a uint8 RGB image; the network normalises, and makes tensors, itself")


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Fits a whole image, (h, w, 3) uint8, to (size, size, 3): nothing is cropped away, the aspect may change."""
    if image.shape[:2] == (size, size):
        return image
    shrinks = min(image.shape[:2]) > size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


class EvalBatch(NamedTuple):
    """The same images on one canvas a size: {size: uint8 (n, size, size, 3)}."""

    canvases: dict[int, torch.Tensor]


class EvalImages(Dataset[EvalBatch]):
    """Pictures for prediction: each is read once, then resized to every size the views need."""

    def __init__(self, images: Pictures, rows: np.ndarray, sizes: Sequence[int]) -> None:
        self.images, self.rows, self.sizes = images, rows, sorted(set(sizes))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> EvalBatch:
        return self.__getitems__([place])

    def __getitems__(self, places: Sequence[int]) -> EvalBatch:
        """Fills one array a size with a whole batch."""
        canvases = {size: np.empty((len(places), size, size, 3), np.uint8) for size in self.sizes}
        for at, place in enumerate(places):
            image = self.images[self.rows[place]]
            for size, canvas in canvases.items():
                canvas[at] = resize(image, size)
        return EvalBatch({size: torch.from_numpy(canvas) for size, canvas in canvases.items()})


def train_loader(
    images: AugmentedImages, sampler: StepSampler, workers: int | str, device: torch.device
) -> DataLoader[TrainBatch]:
    """Feeds training batches."""
    return _loader(images, sampler, workers, device)


def eval_loader(images: EvalImages, batch_size: int, workers: int | str, device: torch.device) -> DataLoader[EvalBatch]:
    """Feeds images in their order."""
    starts = range(0, len(images), batch_size)
    batches = [list(range(start, min(start + batch_size, len(images)))) for start in starts]
    return _loader(images, batches, workers, device)


def _loader(dataset: Dataset[Any], batches: Any, workers: int | str, device: torch.device) -> DataLoader[Any]:
    count = worker_count(workers, device)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=count,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_single_threaded if count else None,
        generator=torch.Generator(),  # else starting a loader would draw from the global one
    )


def worker_count(workers: int | str, device: torch.device) -> int:
    """Resolves ``auto``: on a CPU the model needs all cores and augmenting costs 1 % of it, so no workers."""
    if workers != "auto":
        return int(workers)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # a launcher's, on this machine
    return 0 if device.type == "cpu" else min(16, max(1, usable_cores() // processes))


def _as_it_is(batch: Any) -> Any:
    return batch


def _single_threaded(_: int) -> None:
    cv2.setNumThreads(0)
