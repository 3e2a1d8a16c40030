"""What each image file is, and how bright and how sharp its picture is."""

import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from scenes.data.batches import resize

MODES = {"1": "1 bit", "L": "gray", "LA": "gray with alpha", "P": "palette", "I;16": "16-bit gray"}
OUTLYING = 3.5  # modified z-score above which a value is an outlier (Iglewicz and Hoaglin 1993)


class Header(NamedTuple):
    """What a file's header says."""

    size: str
    mode: str
    format: str


def read_header(path: Path) -> Header:
    """Reads what the file says of itself; nothing is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of very large images
            with Image.open(path) as opened:
                mode = MODES.get(opened.mode, opened.mode)
                return Header(f"{opened.width} × {opened.height}", mode, str(opened.format))
    except Exception:  # of many kinds; OpenCV, which decodes JPEGs, reads some that Pillow does not
        return Header("unknown", "unknown", "unknown")


def brightness(image: np.ndarray) -> float:
    """The mean luma of an RGB uint8 image, in [0, 255]."""
    return float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())


def sharpness(image: np.ndarray, size: int) -> float:
    """The variance of the Laplacian (Pech-Pacheco et al. 2000), low where an image is blurred.

    Args:
        image: RGB, uint8, shape (h, w, 3).
        size: Pixels: that of training, so that images of all sizes can be compared.
    """
    gray = cv2.cvtColor(resize(image, size), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(gray, cv2.CV_64F).var())


def deviations(values: np.ndarray) -> np.ndarray:
    """Modified z-scores: how far each value is from the median, in robust standard deviations.

    Args:
        values: float, shape (n,).

    Returns:
        float64, shape (n,); zeros where most values are equal.
    """
    distances = values - np.median(values)
    spread = np.median(np.abs(distances))
    return 0.6745 * distances / spread if spread else np.zeros(len(values))
