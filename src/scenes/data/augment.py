"""How training images are augmented: presets or any albumentations transforms, drawn from (seed, fold, epoch, row)."""

import difflib
import inspect
import os
import random
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from scenes.console import UserError
from scenes.data.batches import Sample, TrainBatch
from scenes.data.images import ImageSource
from scenes.randomness import key

if TYPE_CHECKING:
    import albumentations as A

Step = str | dict[str, dict[str, Any]]  # an albumentations transform: Name or {Name: {argument: value}}

_CROP: Step = {"RandomResizedCrop": {"scale": [0.6, 1.0], "area_for_downscale": "image"}}
# What keeps the label unchanged, by the competition's symmetry; presets do this after their crop.
FLIPS: dict[str, list[Step]] = {"mirror": [{"HorizontalFlip": {"p": 0.5}}], "none": [], "all": [{"D4": {"p": 1.0}}]}
PRESETS: dict[str, list[Step]] = {
    "none": [],
    "light": [_CROP],
    "medium": [
        _CROP,
        {"ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02, "p": 0.8}},
        {"Affine": {"rotate": [-8, 8], "shear": [-4, 4], "border_mode": cv2.BORDER_REFLECT_101, "p": 0.3}},
    ],
    "strong": [
        {"RandomResizedCrop": {"scale": [0.35, 1.0], "area_for_downscale": "image"}},
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


class AugmentedImages(Dataset[TrainBatch]):
    """Augmented training images; each augmentation is a pure function of (seed, fold, epoch, row)."""

    def __init__(
        self,
        images: ImageSource,
        augment: str | Sequence[Step],
        size: int,
        seed: int,
        fold: int,
        symmetry: str = "mirror",
    ) -> None:
        """Takes the images and what the augmentation depends on.

        Args:
            images: By row.
            augment: A preset's name or a list of transforms, see `compose`.
            size: In pixels.
            seed: The run's seed.
            fold: The fold's number.
            symmetry: The competition's symmetry, see `compose`.
        """
        self.images, self.augment, self.size = images, augment, size
        self.seed, self.fold, self.symmetry = seed, fold, symmetry
        self._transform: A.Compose | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transform": None}

    def seeded_transform(self, sample: Sample) -> "A.Compose":
        """The transforms, with the random state for a sample."""
        seed = key("augment", self.seed, self.fold, sample.epoch, sample.row)
        self._transform = transform = self._transform or compose(self.augment, self.size, self.symmetry)
        transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        cv2.setRNGSeed(seed % 2**31)  # some transforms draw from OpenCV's own generator
        return transform

    def image(self, sample: Sample) -> np.ndarray:
        """Augments one image: RGB, uint8, shape (size, size, 3).

        Raises:
            UserError: If a transform of the user's own cannot handle it, e.g. a distortion of a one-pixel-high image.
        """
        transform = self.seeded_transform(sample)
        image = self.images[sample.row]
        try:
            return transform(image=image)["image"]
        except Exception as error:  # albumentations' own kinds, NumPy's and OpenCV's
            shape = f"{image.shape[0]}×{image.shape[1]} pixels"
            raise UserError(f"augment: fails at training row {sample.row + 1} ({shape}): {error!r}") from error

    def __getitem__(self, sample: Sample) -> TrainBatch:
        return self.__getitems__([sample])

    def __getitems__(self, samples: Sequence[Sample]) -> TrainBatch:
        """Fills one array with a whole batch."""
        images = np.empty((len(samples), self.size, self.size, 3), np.uint8)
        for place, sample in enumerate(samples):
            images[place] = self.image(sample)
        return TrainBatch(torch.from_numpy(images), torch.tensor([sample.row for sample in samples]))


def _albumentations() -> ModuleType:
    """Imports albumentations, late because it is slow and neither prediction nor a probe needs it."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import queries the package index
    import albumentations

    return albumentations


def compose(augment: str | Sequence[Step], size: int, symmetry: str = "mirror") -> "A.Compose":
    """Builds an augmentation that ends in size × size pixels.

    Args:
        augment: A preset's name, or a list of albumentations transforms.
        size: In pixels; passed to transforms that need a size and have none.
        symmetry: The competition's symmetry, for presets: ``mirror``, ``none`` or ``all`` (flips and quarter turns).

    Raises:
        UserError: If a transform or an argument does not exist.
    """
    A = _albumentations()
    steps = augment
    if isinstance(augment, str):
        preset = PRESETS[augment]
        steps = [*preset[:1], *FLIPS[symmetry], *preset[1:]] if preset else []
    transforms = [_transform(step, size) for step in steps]
    return A.Compose([*transforms, A.Resize(size, size, area_for_downscale="image")])


def _transform(step: Any, size: int) -> "A.BasicTransform | A.BaseCompose":
    """Creates one transform; albumentations only warns about unknown arguments, which are errors here."""
    A = _albumentations()
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
    if "pad_if_needed" in parameters:  # else a crop fails on the first smaller image
        arguments.setdefault("pad_if_needed", True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            transform = factory(**arguments)
        if issubclass(factory, A.BasicTransform):
            _try(factory(**arguments | {"p": 1.0}), size)
    except Exception as error:  # albumentations' own kinds, NumPy's and OpenCV's
        raise UserError(f"augment: {name}: {type(error).__name__}: {error}") from None
    return transform


def _try(transform: "A.BasicTransform", size: int) -> None:
    """Raises if a transform returns anything but a uint8 RGB image, or needs more than the image."""
    image = np.zeros((3 * size // 2, 3 * size // 2, 3), np.uint8)  # as large as the image cache keeps them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = _albumentations().Compose([transform])(image=image)["image"]
    if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape[2:] != (3,):
        raise TypeError("does not return a uint8 RGB image; the network itself normalises and makes tensors")
