"""A canvas for the drawings of the built-in sample: sky, light, noise, shapes and the colours of things."""

from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (size, size, 3), RGB
# Colours are (3, 1, 1) and pictures (3, size, size), in 0..255; textures (size, size), in 0..1; outlines (size,).
Field = NDArray[np.floating[Any]]

# Zenith, horizon, how bright it is below: blue days, overcast, white, dusk, dawn, thunder, night.
SKIES = [
    ((70, 125, 200), (195, 215, 235), 1.0),
    ((35, 80, 165), (130, 180, 225), 0.95),
    ((150, 155, 165), (205, 207, 210), 0.8),
    ((215, 218, 220), (235, 235, 232), 0.95),
    ((70, 70, 115), (235, 165, 115), 0.6),
    ((130, 140, 180), (245, 210, 185), 0.9),
    ((95, 100, 110), (150, 155, 160), 0.65),
    ((20, 24, 52), (65, 70, 100), 0.45),
]
GREENS = (60, 100, 40), (90, 125, 50), (40, 70, 45), (110, 115, 50), (150, 100, 40)
STONES = (105, 95, 90), (85, 90, 100), (125, 105, 85), (80, 90, 70), (70, 75, 85)
WATERS = (25, 80, 125), (35, 120, 135), (70, 90, 100), (25, 55, 85), (80, 150, 155)
WALLS = (165, 85, 65), (205, 190, 160), (150, 155, 160), (225, 220, 210), (95, 110, 125), (190, 140, 100)
RED = np.array([230, 60, 40], np.float32)[:, None, None]
# A car from behind, in metres: the middle, half the width, the low and the high edge of its wheels, body, cabin, window
# and lamps.
CAR = (0, 0.8, 0, 1), (0, 0.9, 0.3, 1), (0, 0.7, 1, 1.5), (0, 0.6, 1, 1.4), (-0.7, 0.1, 0.6, 0.8), (0.7, 0.1, 0.6, 0.8)


class Canvas:
    """A picture being drawn: sky and light come first; all places and lengths are fractions of its size."""

    def __init__(self, rng: Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.rows = ((np.arange(size, dtype=np.float32) + 0.5) / size)[:, None]
        self.columns = self.rows[:, 0]
        top, low, level = SKIES[rng.integers(len(SKIES))]
        self.low, self.level = self.pick(low), level * rng.uniform(0.85, 1.1)
        self.tint = 0.7 + 0.3 * self.low / self.low.max()
        self.image = np.zeros((size, size, 3), np.uint8)
        self.fill(-1, self.mix(self.pick(top), self.low, self.rows + 0 * self.columns))
        if rng.random() < 0.65:
            clouds = self.noise(2, int(rng.integers(3, 8)), 5) - rng.uniform(0.4, 0.7)
            self.cover(clouds * rng.uniform(2, 5), self.lit(self.pick((255, 255, 255), (200, 200, 205)), 0.3))
        if rng.random() < 0.25:
            away = np.hypot(self.columns - rng.random(), self.rows - rng.uniform(0, 0.5))
            self.cover(0.05 / (away + 0.01) - 0.15, self.pick((255, 250, 225), (255, 220, 160)))

    def pick(self, *colours: Any, spread: float = 8) -> Field:
        """One of the colours, slightly varied."""
        colour = np.add(colours[self.rng.integers(len(colours))], self.rng.normal(0, spread, 3))
        return np.clip(colour, 5, 255).astype(np.float32)[:, None, None]

    def lit(self, paint: Field, distance: float = 0.0) -> Field:
        """A colour or picture in this light; with distance, the haze of the horizon covers it."""
        distance = float(distance)  # a NumPy float64 would make the whole picture float64
        return paint * (self.level * (1 - distance) * self.tint) + self.low * distance

    def mix(self, first: Field, second: Field, share: Field) -> Field:
        """From the first colour to the second, by a share that is clipped to 0..1."""
        return first + (second - first) * np.clip(share, 0, 1).astype(np.float32)

    def noise(self, across: int, down: int, octaves: int) -> Field:
        """Fractal noise with `across` x `down` large blobs."""
        total = np.zeros((self.size, self.size), np.float32)
        for octave in range(octaves):
            grid = self.rng.random((down << octave, across << octave), np.float32)
            total += cv2.resize(grid, total.shape, interpolation=cv2.INTER_LINEAR) / 2**octave
        return (total - total.min()) / (total.max() - total.min())

    def ground(self, horizon: float, stretch: float = 1.0, octaves: int = 3) -> Field:
        """Noise that lies on the ground in perspective; `stretch` > 1 draws it out sideways."""
        tile = self.noise(16, 16, octaves)
        far = 1 / np.maximum(self.rows - horizon, 0.01)
        u, v = (
            (self.columns - self.rng.uniform(0.2, 0.8)) * far * (0.27 * self.size / stretch),
            far * (0.4 * self.size) + 0 * self.columns,
        )
        tile = cv2.copyMakeBorder(tile, 0, self.size, 0, self.size, cv2.BORDER_REFLECT)  # wraps without seams
        texture = cv2.remap(tile, np.float32(u), np.float32(v), cv2.INTER_LINEAR, None, cv2.BORDER_WRAP)
        return 0.5 + (texture - 0.5) * np.minimum(1, 6 / far)

    def ridge(self, height: float, swing: float, rough: float = 0.55) -> Field:
        """An outline by midpoint displacement."""
        points = self.rng.uniform(-swing, swing, self.rng.integers(3, 6))
        while len(points) < self.size:
            swing *= rough
            middles = (points[1:] + points[:-1]) / 2 + self.rng.uniform(-swing, swing, len(points) - 1)
            points = np.append(np.stack([points[:-1], middles], 1).ravel(), points[-1])
        return (height + np.interp(self.columns, np.linspace(0, 1, len(points)), points)).astype(np.float32)

    def cover(self, opacity: Field, paint: Field) -> None:
        """Lays a colour or picture over everything; opacity is clipped to 0..1."""
        opacity = np.clip(opacity, 0, 1).astype(np.float32)
        whole = cv2.convertScaleAbs(np.float32(paint).ravel()).reshape(paint.shape)  # clips at 255
        planes = list(np.broadcast_to(whole, (3, self.size, self.size)))
        self.image = cv2.blendLinear(self.image, cv2.merge(planes), 1 - opacity, opacity)

    def fill(self, outline: Field | float, paint: Field, soft: float = 1) -> None:
        """Paints everything below an outline, with an edge `soft` pixels wide."""
        self.cover((self.rows - outline + 0 * self.columns) * (self.size / soft) + 0.5, paint)

    def shape(self, corners: Any, colour: Field) -> None:
        """Fills one polygon (points, 2), or many (n, points, 2), with smooth edges."""
        points = np.multiply(corners, 16 * self.size).astype(np.int32)
        cv2.fillPoly(self.image, list(points.reshape(-1, *points.shape[-2:])), colour.ravel().tolist(), cv2.LINE_AA, 4)

    def rock(self, outline: Field, colour: Field, distance: float, snow: float = 0) -> None:
        """Rugged ground below an outline, lit from one side, white as far down as `snow`."""
        depth, relief = self.rows - outline, self.noise(5, 6, 5)
        face = np.gradient(cv2.blur(outline[None], (9, 1))[0], 6 / self.size) * np.exp(-4 * np.maximum(depth, 0))
        shade = np.clip(0.8 + (np.roll(relief, 2, 1) - relief) * self.rng.uniform(3, 6) + face, 0.35, 1.25)
        white = (snow - depth) * 5 + (relief - 0.5) * 3 if snow > 0 else 0 * depth
        self.fill(outline, self.lit(self.mix(colour, np.full((3, 1, 1), 248, np.float32), white) * shade, distance))

    def water(self, horizon: float, colour: Field, waves: float) -> None:
        """Water from the horizon down: sky-coloured far away, with waves and sometimes glitter."""
        surface, depth = self.ground(horizon, 4), np.maximum(self.rows - horizon, 0)
        near = (depth / (1 - horizon)) ** 0.6 * (0.6 + 0.4 * surface)
        paint = self.mix(self.low, self.lit(colour), near) * (1 + waves * (surface - 0.5))
        if self.rng.random() < 0.35:
            path = np.exp(-(((self.columns - self.rng.random()) / (0.04 + 0.2 * depth)) ** 2))
            paint = paint + 2 * self.low * path * np.clip(surface - 0.55, 0, 1)
        self.fill(horizon, paint)

    def facade(self, corners: Any, floors: int, bays: int, distance: float) -> None:
        """A wall with a grid of windows; corners (4, 2) from the top left clockwise."""
        self.shape(corners, self.lit(self.pick(*WALLS, spread=15), distance))
        square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
        places = np.stack(np.meshgrid(np.arange(bays), np.arange(floors)), -1).reshape(-1, 1, 2)
        panes = (places + 0.5 + (square - 0.5) * self.rng.uniform(0.4, 0.8, 2)) / (bays, floors)
        warp = cv2.getPerspectiveTransform(square, np.float32(corners))
        panes = cv2.perspectiveTransform(panes.reshape(1, -1, 2).astype(np.float32), warp).reshape(-1, 4, 2)
        bright = self.rng.random(len(panes)) < (0.5 if self.level < 0.6 else 0.06)
        self.shape(panes[~bright], self.lit(self.pick((40, 50, 65), (75, 100, 130), (30, 30, 35)), distance))
        self.shape(panes[bright], self.pick((255, 225, 150), (250, 240, 210)) * (1 - 0.5 * distance))

    def tree(self, x: float, foot: float, height: float, colour: Field, is_fir: bool) -> None:
        """A fir, or a crown of heaped discs that get lighter towards the top."""
        rng, trunk = self.rng, np.array([(-0.03, 0), (0.03, 0), (0.02, -0.5), (-0.02, -0.5)])
        self.shape((x, foot) + trunk * height, colour * 0.4)
        if is_fir:
            lifts = np.linspace(0.1, 1, 11)
            side = np.stack([(1.02 - lifts) * np.resize([1, 0.6], 11) * rng.uniform(0.18, 0.32), -lifts], 1)
            self.shape((x, foot) + np.concatenate([side, side[::-1] * (-1, 1)]) * height, colour)
            return
        lifts = np.sort(rng.uniform(0.35, 0.95, 10))
        spots = np.stack([x + rng.normal(0, 0.13 * height, 10), foot - lifts * height], 1) * self.size
        tones, radius = np.outer(0.5 + 0.7 * lifts, colour), int(height * self.size * rng.uniform(0.08, 0.14)) + 1
        for spot, tone in zip(spots.astype(int).tolist(), tones.tolist(), strict=True):
            cv2.circle(self.image, spot, radius, tone, -1, cv2.LINE_AA)

    def trees(self, outline: Field, height: float, count: int, distance: float = 0) -> None:
        """A row of trees of one kind, standing on an outline."""
        is_fir, leaves = self.rng.random() < 0.5, self.pick(*GREENS)
        for x in self.rng.random(count):
            tone = self.lit(leaves * self.rng.uniform(0.75, 1.2), distance)
            self.tree(x, outline[int(x * self.size)] + 0.01, height * self.rng.uniform(0.6, 1.2), tone, is_fir)
