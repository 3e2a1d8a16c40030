"""Gathers everything check.py reports about a competition."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from scenes.config import Config
from scenes.console import UserError, progress
from scenes.insight.duplicates import find_pairs, perceptual_hash
from scenes.insight.quality import brightness, deviations, read_header, sharpness
from scenes.insight.readable import Readable, read
from scenes.insight.shift import Shift, adversarial_validation
from scenes.model.backbone import Classifier
from scenes.model.device import choose_device
from scenes.model.pretrained import pretrained_state
from scenes.training.features import body_features

SIDES = ("within train", "train and test", "within test")


@dataclass(frozen=True)
class Survey:
    """What is known about a competition's data; rows are numbered as in `Readable`.

    Attributes:
        data: The readable rows.
        looks: Each row's size, mode, format, brightness and sharpness; and the modified z-scores brightness_z and
            sharpness_z (of the logarithm of sharpness).
        pairs: From `find_pairs`, plus `side`, one of SIDES, and `conflict`: whether the labels differ.
        shift: How well training and test images can be told apart; None if unknown.
        no_embeddings: Why there are no embeddings, hence no shift and fewer near duplicates; empty if there are.
    """

    data: Readable
    looks: pd.DataFrame
    pairs: pd.DataFrame
    shift: Shift | None
    no_embeddings: str


def survey(config: Config) -> Survey:
    """Reads and examines all images.

    Raises:
        UserError: If no training image can be read.
    """
    data, device = read(config), choose_device()
    looks, hashes = _look(data, config.image_size)
    embeddings, reason = _embed(config, data, device)
    pairs = find_pairs(np.concatenate([side.images.pixel_hashes for side in data.sides]), hashes, embeddings, device)
    count, targets = len(data.train), data.targets
    in_test = (pairs["first"] >= count).astype(int) + (pairs["second"] >= count)
    pairs["side"] = np.array(SIDES)[in_test]
    first, second = (np.minimum(pairs[side], count - 1) for side in ("first", "second"))
    differs = targets[first] != targets[second]
    pairs["conflict"] = (in_test == 0) & (differs.any(1) if differs.ndim == 2 else differs)
    shift = None
    if embeddings is not None and data.test:
        shift = adversarial_validation(embeddings[:count], embeddings[count:], config.seed)
    return Survey(data, looks, pairs, shift, reason)


def _look(data: Readable, size: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Reads every file once; returns the columns of `Survey.looks`, and perceptual hashes of shape (n, 63)."""
    paths = [path for side in data.sides for path in side.table.paths]
    looks, hashes = [], []
    for row, path in enumerate(progress(paths, len(paths), "examining images", "img")):
        image = data.image(row)
        looks.append((*read_header(path), brightness(image), sharpness(image, size)))
        hashes.append(perceptual_hash(image))
    table = pd.DataFrame(looks, columns=["size", "mode", "format", "brightness", "sharpness"])
    table["brightness_z"] = deviations(table["brightness"].to_numpy())
    table["sharpness_z"] = deviations(np.log1p(table["sharpness"].to_numpy()))
    return table, np.stack(hashes)


def _embed(config: Config, data: Readable, device: torch.device) -> tuple[np.ndarray | None, str]:
    """Computes the pretrained body's features of all rows, float32, shape (n, f); or says why there are none."""
    try:
        state = pretrained_state(config)
        if state is None:
            return None, "there are no pretrained weights (model.weights: none)"
        model = Classifier(config.model, config.image_size, data.task)
    except UserError as error:
        return None, str(error)
    model.body.load_state_dict(state)
    model.to(device, memory_format=torch.channels_last)
    # The linear probe of training reuses these features from the cache.
    features = [body_features(model, side.images, config.image_size, config) for side in data.sides]
    return np.concatenate(features), ""
