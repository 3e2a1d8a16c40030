"""Drawn images and their files."""

from io import BytesIO

import numpy as np
from PIL import Image


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """A smooth gradient with some noise, so that JPEGs stay close to it and still have a realistic size."""
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x / width, y / height, (x + y) / (height + width)], 2) * 200
    return (smooth + np.random.default_rng(seed).integers(0, 40, (height, width, 3))).astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()
