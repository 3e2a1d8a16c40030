"""What the check shows as pictures: galleries, pairs, contact sheets, what the augmentation draws."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from markupsafe import Markup

from scenes.config import Config
from scenes.data.augment import AugmentedImages
from scenes.data.batches import Sample, resize
from scenes.insight import page
from scenes.insight.readable import Readable
from scenes.randomness import key

SIDE = 320  # pixels of the longer side
A_CLASS, IN_ALL = 24, 480  # pictures on the contact sheets
DRAWS = 7
GAP = 4  # pixels between pictures


def gallery(data: Readable, rows: Iterable[int], notes: Iterable[str]) -> list[dict[str, str | Markup]]:
    """Makes pictures of rows, each with its label, a note and its name."""
    return [
        {
            "src": page.thumbnail(data.image(row), SIDE),
            "caption": Markup("<b>{}</b> {}<br>{}").format(data.label(row), note, data.name(row)),
        }
        for row, note in zip(rows, notes, strict=True)
    ]


def pairs(data: Readable, rows: Iterable[tuple[int, int]], notes: Iterable[str]) -> list[dict[str, str | Markup]]:
    """Makes a picture of each two rows side by side."""
    return [
        {
            "src": page.thumbnail(beside([data.image(first), data.image(second)], SIDE), 2 * SIDE + GAP),
            "caption": Markup("<b>{}</b> | <b>{}</b> {}<br>{} | {}").format(
                data.label(first), data.label(second), note, data.name(first), data.name(second)
            ),
        }
        for (first, second), note in zip(rows, notes, strict=True)
    ]


def beside(images: Sequence[np.ndarray], height: int) -> np.ndarray:
    """Joins RGB uint8 images to one row of at most this height in pixels, a gap between them."""
    height = min(height, max(image.shape[0] for image in images))
    parts: list[np.ndarray] = []
    for image in images:
        width = min(max(1, round(image.shape[1] * height / image.shape[0])), 4 * height)
        gap = np.full((height, GAP, 3), 128, np.uint8)
        parts += [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), gap]
    return np.concatenate(parts[:-1], 1)


def contact_sheets(data: Readable, seed: int) -> list[tuple[str, list[dict[str, str | Markup]]]]:
    """Draws some images of each class: (class name, pictures); of very many classes only the first."""
    count = max(1, min(A_CLASS, IN_ALL // len(data.labels.classes)))
    sheets = []
    for target, name in enumerate(data.labels.class_names[:IN_ALL]):
        rows = np.flatnonzero(data.labels.targets == target)
        chosen = np.random.default_rng(key("contact sheet", seed, target)).permutation(rows)[:count].tolist()
        sheets.append((name, gallery(data, chosen, [""] * len(chosen))))
    return sheets


def augmentations(data: Readable, config: Config, count: int) -> list[dict[str, str]]:
    """Shows what training on fold 0 sees of some images in its first epochs, each beside the whole image.

    Raises:
        UserError: If a transform of the user's own list cannot take an image.
    """
    augmented = AugmentedImages(data.train.images, config.augment, config.image_size, config.seed, 0)
    chosen = np.random.default_rng(key("augmentation sheet", config.seed)).permutation(len(data.train))[:count]
    strips = []
    for row in sorted(chosen.tolist()):
        draws = [augmented.image(Sample(row, epoch)) for epoch in range(DRAWS)]
        strip = beside([resize(data.image(row), config.image_size), *draws], SIDE // 2)
        strips.append({"src": page.thumbnail(strip, strip.shape[1]), "alt": f"{data.name(row)} and {DRAWS} draws"})
    return strips
