"""Training images that stay in a GPU's memory: the CPU draws crops and flips, the GPU computes a batch's pixels.

The draws are those of `AugmentedImages`, and the pixels are OpenCV's, within one grey level.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from scenes.data.augment import AugmentedImages, Step
from scenes.data.batches import Sample, TrainBatch, resize_weights
from scenes.data.images import ImageSource

PRESETS = ("none", "light")  # other presets do more than crop and flip
SHARE = 1 / 3  # of the free memory, at most
CHUNK = 256  # images to copy at a time
DRAWN = 8  # numbers drawn per image: see `DrawnCrops`
# Each symmetry of the square: whether to flip the rows, then the columns, then to swap the two.
WAYS = {
    "e": (0, 0, 0),
    "h": (0, 1, 0),
    "v": (1, 0, 0),
    "r180": (1, 1, 0),
    "t": (0, 0, 1),
    "r90": (0, 1, 1),
    "r270": (1, 0, 1),
    "hvt": (1, 1, 1),
}


def where_to_crop(
    shapes: np.ndarray, augment: str | Sequence[Step], device: torch.device
) -> tuple[Literal["cpu", "gpu"], str]:
    """Chooses where training images are cropped and flipped, and says why.

    Args:
        shapes: int64, shape (n, 2): heights and widths of the decoded images.
        augment: A preset's name or a list of transforms.
        device: Where the network trains.
    """
    if device.type == "cpu":
        return "cpu", "there is no GPU"
    if augment not in PRESETS:
        return "cpu", f"a GPU does those of augment: {' and '.join(PRESETS)} only"
    needed, free = len(shapes) * 3 * int(shapes.max(0).prod()), torch.cuda.mem_get_info(device)[0]
    sizes = f"{needed / 2**30:.1f} of the {free / 2**30:.1f} GiB that are free there"
    if needed > SHARE * free:
        return "cpu", f"the decoded images would take {sizes}, more than a third"
    return "gpu", f"the decoded images take {sizes}"


class DrawnCrops(Dataset[TrainBatch]):
    """The crops and flips drawn for training images, instead of their pixels.

    A batch's `images` are int64, shape (n, 8): row, top, left, bottom, right, and 1 or 0 for each part of `WAYS`.
    """

    def __init__(self, augmented: AugmentedImages, shapes: np.ndarray) -> None:
        self.augmented, self.shapes = augmented, shapes

    def __getitem__(self, sample: Sample) -> TrainBatch:
        return self.__getitems__([sample])

    def __getitems__(self, samples: Sequence[Sample]) -> TrainBatch:
        """Draws a whole batch."""
        drawn = torch.tensor([self._draw(sample) for sample in samples])
        return TrainBatch(drawn, torch.tensor([sample.row for sample in samples]))

    def _draw(self, sample: Sample) -> tuple[int, ...]:
        import albumentations as A  # slow, and only needed here

        height, width = map(int, self.shapes[sample.row])
        left, top, right, bottom, way = 0, 0, width, height, "e"
        transform = self.augmented.seeded_transform(sample)
        transform.py_random.random()  # albumentations' first draw: whether to do anything at all
        for step in transform.transforms:
            if not step.should_apply():
                continue
            found = step.get_params() | step.get_params_dependent_on_data({"shape": (height, width, 3)}, {})
            if isinstance(step, A.RandomResizedCrop):
                left, top, right, bottom = map(int, found["crop_coords"])
            elif isinstance(step, A.HorizontalFlip):
                way = "h"
            elif isinstance(step, A.D4):
                way = str(found["group_element"])
        return sample.row, top, left, bottom, right, *WAYS[way]


class ResidentImages:
    """All training images in a device's memory, padded to the largest."""

    def __init__(self, images: ImageSource, shapes: np.ndarray, device: torch.device) -> None:
        height, width = map(int, shapes.max(0))
        # Colours are between rows and columns, so that both axes are resized by plain matrix products.
        self.pixels = torch.empty((len(images), height, 3, width), dtype=torch.uint8, device=device)
        for first in range(0, len(images), CHUNK):
            part = np.zeros((len(shapes[first : first + CHUNK]), height, 3, width), np.uint8)
            for place, (high, wide) in enumerate(shapes[first : first + CHUNK]):
                part[place, :high, :, :wide] = images[first + place].transpose(0, 2, 1)
            self.pixels[first : first + CHUNK] = torch.from_numpy(part).to(device)

    def crops(self, drawn: Tensor, size: int) -> Tensor:
        """Computes a batch's pixels.

        Args:
            drawn: From `DrawnCrops`, on the device, shape (n, 8).
            size: The side of the results in pixels.

        Returns:
            uint8, shape (n, 3, size, size), channels last in memory.
        """
        row, top, left, bottom, right, upside_down, mirrored, turned = drawn.unbind(1)
        height, width = self.pixels.shape[1], self.pixels.shape[3]
        rows = _weights(top, bottom, upside_down, height, size)
        columns = _weights(left, right, mirrored, width, size)
        made = self.pixels[row].float().flatten(1, 2) @ columns.mT
        made = rows @ made.view(-1, height, 3 * size)
        images = (made + 0.5).clamp(max=255).to(torch.uint8).view(-1, size, 3, size).transpose(1, 2)
        images = torch.where(turned.bool().view(-1, 1, 1, 1), images.mT, images)
        return images.contiguous(memory_format=torch.channels_last)


def _weights(first: Tensor, end: Tensor, is_reversed: Tensor, length: int, size: int) -> Tensor:
    """The weight of each of an image's `length` pixels in each of the `size` pixels that a crop becomes.

    Args:
        first: int64, shape (n,): where each crop begins.
        end: Where it ends.
        is_reversed: 1 where the result is reversed.
        length: The number of the image's pixels.
        size: The number of the result's pixels.

    Returns:
        float32, shape (n, size, length); each row sums to 1.
    """
    first, end, is_reversed = (values[:, None, None] for values in (first, end, is_reversed))
    new = torch.arange(size, device=first.device)[:, None]
    new = torch.where(is_reversed.bool(), size - 1 - new, new).float()
    old = (torch.arange(length, device=first.device) - first).float()  # from the crop's edge; outside adds nothing
    ratio, last = (end - first) / size, (end - first - 1).float()
    return resize_weights(new, old, ratio, last, ratio > 1)
