"""Properties of image files: size, mode and format from the header, brightness, sharpness."""

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
    """Size, mode and format of an image file, as its header states them."""

    size: str
    mode: str
    format: str


def read_header(path: Path) -> Header:
    """Reads a file's header without decoding the image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about very large images
            with Image.open(path) as opened:
                mode = MODES.get(opened.mode, opened.mode)
                return Header(f"{opened.width} × {opened.height}", mode, str(opened.format))
    except Exception:  # Pillow raises many types, even for JPEGs that OpenCV can read
        return Header("unknown", "unknown", "unknown")


def brightness(image: np.ndarray) -> float:
    """The mean luma of an RGB uint8 image, in [0, 255]."""
    return float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())


def sharpness(image: np.ndarray, size: int) -> float:
    """The variance of the Laplacian (Pech-Pacheco et al. 2000), which is low for blurred images.

    Args:
        image: RGB, uint8, shape (h, w, 3).
        size: Pixels; images are first resized to this, so that different sizes are comparable.
    """
    gray = cv2.cvtColor(resize(image, size), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(gray, cv2.CV_64F).var())


def deviations(values: np.ndarray) -> np.ndarray:
    """Modified z-scores: the distance of each value from the median in robust standard deviations.

    Args:
        values: float, shape (n,).

    Returns:
        float64, shape (n,); all zeros if most values are equal.
    """
    distances = values - np.median(values)
    spread = np.median(np.abs(distances))
    return 0.6745 * distances / spread if spread else np.zeros(len(values))
