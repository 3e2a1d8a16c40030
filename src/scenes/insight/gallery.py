"""Images for the pages: thumbnails with captions, pairs, heat maps, augmented versions."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import cv2
import numpy as np
from markupsafe import Markup

from scenes.competition.rows import read_train_rows
from scenes.config import Config
from scenes.console import UserError
from scenes.data.augment import AugmentedImages
from scenes.data.batches import Sample, resize
from scenes.data.decode import BadImageError, decode
from scenes.insight import page
from scenes.insight.readable import Readable
from scenes.insight.results import HeldOut
from scenes.insight.saliency import overlay
from scenes.randomness import key

SMALL, LARGE = 320, 1000  # the longer side in pixels
TOP = 3  # classes, or labels, in a caption
IMAGES_PER_CLASS, IMAGES_IN_ALL = 24, 480  # on the contact sheets
DRAWS = 7  # augmented versions of an image
GAP = 4  # pixels between images

# What the gallery macro shows: `src` and, if a larger version can be opened, `large` are data URIs.
Shown = dict[str, str | Markup | None]


# --------------------------------------------------------------------------------------- held-out rows of a run


def read_images(config: Config, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Decodes training images by name: RGB, uint8; missing and unreadable images are left out."""
    try:
        table, _ = read_train_rows(config.data)
    except UserError:
        return {}
    paths = dict(zip(table.names, table.paths, strict=True))
    images = {}
    for name in names:
        with suppress(BadImageError, KeyError):
            short_side = max(LARGE // 2, config.predict_size)
            images[name] = decode(paths[name], short_side, config.data.pixel_range).pixels
    return images


def held_out(
    held: HeldOut, rows: Iterable[int], images: Mapping[str, np.ndarray], maps: Mapping[int, np.ndarray]
) -> list[Shown]:
    """Shows held-out rows with their predictions.

    Args:
        held: The held-out rows.
        rows: Which rows, in this order; rows without an image are left out.
        images: The images by name.
        maps: Heat maps by row; not every row needs one.
    """
    shown: list[Shown] = []
    for row in rows:
        image = images.get(held.names[row])
        if image is None:
            continue
        if row in maps:
            image = np.concatenate([image, overlay(image, maps[row])], 1)
        large = page.thumbnail(image, LARGE) if max(image.shape[:2]) > SMALL else None
        shown.append({"src": page.thumbnail(image, SMALL), "large": large, "caption": _caption(held, row)})
    return shown


def _caption(held: HeldOut, row: int) -> Markup:
    """The truth, the prediction, the most interesting probabilities, the file and its fold."""
    predictions, task = held.predictions[row], held.task
    if task.kind == "number":
        head = Markup("<b>{:.4g}</b>, predicted <b>{:.4g}</b>").format(held.targets[row], predictions[0])
    elif held.is_right[row]:
        head = Markup("<b>{}</b>, correct").format(_named(held, held.targets[row]))
    else:
        truth, decided = _named(held, held.targets[row]), _named(held, held.decided[row])
        head = Markup("<b>{}</b>, predicted <b>{}</b>").format(truth, decided)
    if task.kind != "number":
        order = -predictions if task.kind == "classes" else -held.gaps[row]
        best = np.argsort(order, kind="stable")[:TOP]
        listed = ", ".join(f"{task.names[output]} {predictions[output]:.2f}" for output in best)
        head += Markup("<br>{}").format(listed)
    return head + Markup("<br>{}, fold {}").format(held.names[row], held.folds[row])


def _named(held: HeldOut, decided: np.ndarray) -> str:
    """A class, or a set of labels, in words."""
    names = held.task.names
    if held.task.kind == "classes":
        return names[int(decided)]
    return ", ".join(names[at] for at in np.flatnonzero(decided >= 0.5)) or "none"


# ------------------------------------------------------------------------------------------ rows of a competition


def rows(data: Readable, chosen: Iterable[int], notes: Iterable[str]) -> list[Shown]:
    """Shows rows with their label, a note and their name."""
    return [
        {
            "src": page.thumbnail(data.image(row), SMALL),
            "caption": Markup("<b>{}</b> {}<br>{}").format(data.label(row), note, data.name(row)),
        }
        for row, note in zip(chosen, notes, strict=True)
    ]


def pairs(data: Readable, chosen: Iterable[tuple[int, int]], notes: Iterable[str]) -> list[Shown]:
    """Shows pairs of rows side by side."""
    return [
        {
            "src": page.thumbnail(beside([data.image(first), data.image(second)], SMALL), 2 * SMALL + GAP),
            "caption": Markup("<b>{}</b> | <b>{}</b> {}<br>{} | {}").format(
                data.label(first), data.label(second), note, data.name(first), data.name(second)
            ),
        }
        for (first, second), note in zip(chosen, notes, strict=True)
    ]


def beside(images: Sequence[np.ndarray], height: int) -> np.ndarray:
    """Joins RGB uint8 images side by side, with gaps, at most `height` pixels high."""
    height = min(height, max(image.shape[0] for image in images))
    parts: list[np.ndarray] = []
    for image in images:
        width = min(max(1, round(image.shape[1] * height / image.shape[0])), 4 * height)
        gap = np.full((height, GAP, 3), 128, np.uint8)
        parts += [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), gap]
    return np.concatenate(parts[:-1], 1)


def contact_sheets(data: Readable, seed: int) -> list[tuple[str, list[Shown]]]:
    """Samples a few images of each class, label or range: (its name, images); if very many, only of the first ones."""
    count = max(1, min(IMAGES_PER_CLASS, IMAGES_IN_ALL // len(data.groups)))
    sheets = []
    for at, (name, members) in enumerate(data.groups[:IMAGES_IN_ALL]):
        chosen = np.random.default_rng(key("contact sheet", seed, at)).permutation(members)[:count].tolist()
        sheets.append((name, rows(data, chosen, [""] * len(chosen))))
    return sheets


def augmentations(data: Readable, config: Config, count: int) -> list[dict[str, str]]:
    """Shows how fold 0 sees a few images in its first epochs, each beside the original.

    Raises:
        UserError: If a transform from the user's list fails on an image.
    """
    augmented = AugmentedImages(
        data.train.images, config.augment, config.image_size, config.seed, 0, symmetry=config.symmetry
    )
    chosen = np.random.default_rng(key("augmentation sheet", config.seed)).permutation(len(data.train))[:count]
    strips = []
    for row in sorted(chosen.tolist()):
        draws = [augmented.image(Sample(row, epoch)) for epoch in range(DRAWS)]
        strip = beside([resize(data.image(row), config.image_size), *draws], SMALL // 2)
        strips.append({"src": page.thumbnail(strip, strip.shape[1]), "alt": f"{data.name(row)} and {DRAWS} draws"})
    return strips
