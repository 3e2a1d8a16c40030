"""Training images as a page shows them: read by name, side by side with a heat map, with a caption."""

from collections.abc import Iterable, Mapping
from contextlib import suppress

import numpy as np
from markupsafe import Markup

from scenes.competition.rows import read_train
from scenes.config import Config
from scenes.console import UserError
from scenes.data.decode import BadImageError, decode
from scenes.insight import page
from scenes.insight.results import HeldOut
from scenes.insight.saliency import overlay

SMALL, LARGE = 320, 1000  # pixels of the longer side
TOP = 3  # classes named in a caption


def read(config: Config, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Decodes training images by name: RGB, uint8; those that are no longer there are left out."""
    try:
        table, _, _ = read_train(config.data, None)
    except UserError:
        return {}
    paths = dict(zip(table.names, table.paths, strict=True))
    images = {}
    for name in names:
        with suppress(BadImageError, KeyError):
            short_side = max(LARGE // 2, config.predict_size)
            images[name] = decode(paths[name], short_side, config.data.pixel_range).pixels
    return images


def gallery(
    held: HeldOut, rows: Iterable[int], images: Mapping[str, np.ndarray], maps: Mapping[int, np.ndarray]
) -> list[dict[str, object]]:
    """Makes what the gallery macro shows.

    Args:
        held: Held-out rows.
        rows: Which of them, in this order; those without an image are left out.
        images: By name.
        maps: Heat maps by row, for those that have one.
    """
    pictures: list[dict[str, object]] = []
    for row in rows:
        image = images.get(held.names[row])
        if image is None:
            continue
        if row in maps:
            image = np.concatenate([image, overlay(image, maps[row])], 1)
        large = page.thumbnail(image, LARGE) if max(image.shape[:2]) > SMALL else None
        pictures.append({"src": page.thumbnail(image, SMALL), "large": large, "caption": _caption(held, row)})
    return pictures


def _caption(held: HeldOut, row: int) -> Markup:
    """Label, prediction, the highest probabilities, the file and its fold."""
    names, chances = held.class_names, held.probabilities[row]
    best = np.argsort(-chances, kind="stable")[:TOP]
    listed = ", ".join(f"{names[c]} {chances[c]:.2f}" for c in best)
    head = "<b>{label}</b>, predicted <b>{predicted}</b>" if not held.hits[row] else "<b>{label}</b>, rightly predicted"
    return Markup(head + "<br>{listed}<br>{name}, fold {fold}").format(
        label=names[held.targets[row]],
        predicted=names[held.predicted[row]],
        listed=listed,
        name=held.names[row],
        fold=held.folds[row],
    )
