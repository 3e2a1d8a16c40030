"""All that the check finds out about a competition, before it is put into words and pictures."""

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
from scenes.model.device import choose_device, choose_precision
from scenes.model.weights import pretrained_state
from scenes.training.probe import body_features

SIDES = ("within train", "train and test", "within test")


@dataclass(frozen=True)
class Survey:
    """What there is to know; rows are counted as `Readable` does.

    Attributes:
        data: The rows that can be read.
        looks: For each row size, mode, format, brightness, sharpness; and, as modified z-scores over all rows,
            brightness_z and sharpness_z (of its logarithm).
        pairs: As `find_pairs` has them, with `side`, one of SIDES, and `conflict`: two labels for one picture.
        shift: How well train and test can be told apart; None where that is unknown.
        no_embeddings: Why there are none, and so no shift and fewer near duplicates; empty where there are.
    """

    data: Readable
    looks: pd.DataFrame
    pairs: pd.DataFrame
    shift: Shift | None
    no_embeddings: str


def survey(config: Config) -> Survey:
    """Reads everything and looks at it.

    Raises:
        UserError: If there is not one training image that can be read.
    """
    data, device = read(config), choose_device()
    looks, hashes = _look(data, config.image_size)
    embeddings, reason = _embed(config, data, device)
    pairs = find_pairs(np.concatenate([side.images.pixel_hashes for side in data.sides]), hashes, embeddings, device)
    count, targets = len(data.train), data.labels.targets
    in_test = (pairs["first"] >= count).astype(int) + (pairs["second"] >= count)
    pairs["side"] = np.array(SIDES)[in_test]
    labels = np.append(targets, np.zeros(len(data) - count, np.int64))
    pairs["conflict"] = (in_test == 0) & (labels[pairs["first"]] != labels[pairs["second"]])
    shift = None
    if embeddings is not None and data.test:
        shift = adversarial_validation(embeddings[:count], embeddings[count:], config.seed)
    return Survey(data, looks, pairs, shift, reason)


def _look(data: Readable, size: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Goes through all files once: the columns of `Survey.looks`, and perceptual hashes (n, 63)."""
    paths = [path for side in data.sides for path in side.table.paths]
    looks, hashes = [], []
    for row, path in enumerate(progress(paths, len(paths), "looking at images", "img")):
        image = data.image(row)
        looks.append((*read_header(path), brightness(image), sharpness(image, size)))
        hashes.append(perceptual_hash(image))
    table = pd.DataFrame(looks, columns=["size", "mode", "format", "brightness", "sharpness"])
    table["brightness_z"] = deviations(table["brightness"].to_numpy())
    table["sharpness_z"] = deviations(np.log1p(table["sharpness"].to_numpy()))
    return table, np.stack(hashes)


def _embed(config: Config, data: Readable, device: torch.device) -> tuple[np.ndarray | None, str]:
    """Computes the frozen body's features of all rows, float32, shape (n, f); or says why there are none."""
    try:
        state = pretrained_state(config)
        if state is None:
            return None, "there are no pretrained weights (model.weights: none)"
        model = Classifier(config.model, config.image_size, len(data.labels.classes))
    except UserError as error:
        return None, str(error)
    model.body.load_state_dict(state)
    model.to(device, memory_format=torch.channels_last)
    precision = choose_precision(config.infer.precision, device)
    settings = (config.image_size, config.infer.batch_size, device, config.loader.workers, config.data.cache, precision)
    # Training's linear probe finds these features in the cache.
    return np.concatenate([body_features(model, side.images, *settings) for side in data.sides]), ""
