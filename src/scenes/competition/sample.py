"""The built-in sample competition: six kinds of scenes, drawn, so that everything can be tried without a download."""

import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scenes.console import UserError
from scenes.randomness import key

CLASS_NAMES = ["buildings", "forest", "glacier", "mountain", "sea", "street"]

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
    """A picture in the making: its sky and light are drawn at once; all places and lengths are parts of its size."""

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
        """One of the colours, a little off."""
        colour = np.add(colours[self.rng.integers(len(colours))], self.rng.normal(0, spread, 3))
        return np.clip(colour, 5, 255).astype(np.float32)[:, None, None]

    def lit(self, paint: Field, distance: float = 0.0) -> Field:
        """A colour or picture in this light; with distance the haze of the horizon covers it."""
        distance = float(distance)  # a float64 of NumPy's would make the whole picture float64
        return paint * (self.level * (1 - distance) * self.tint) + self.low * distance

    def mix(self, first: Field, second: Field, share: Field) -> Field:
        """From the first colour to the second, by a share that is cut to 0..1."""
        return first + (second - first) * np.clip(share, 0, 1).astype(np.float32)

    def noise(self, across: int, down: int, octaves: int) -> Field:
        """Fractal noise with `across` x `down` large blots."""
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
        """Lays a colour or picture over everything; opacity is cut to 0..1."""
        opacity = np.clip(opacity, 0, 1).astype(np.float32)
        whole = cv2.convertScaleAbs(np.float32(paint).ravel()).reshape(paint.shape)  # cuts at 255
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
        """Water from the horizon down: far off the colour of the sky, waves, sometimes glitter."""
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
        """A fir, or a crown heaped of discs that are lighter to the top."""
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


def _buildings(art: Canvas, rng: Generator) -> None:
    """Towers, from a far skyline to a few seen close and from below; before water, trees or nothing."""
    if rng.random() < 0.06:  # a canyon of towers, which could as well be called a street
        return _street(art, rng, height=2.5)
    scale = rng.uniform(0.1, 0.6)
    base = rng.uniform(0.6, 0.9) + 0.5 * scale
    if rng.random() < 0.2:
        art.rock(art.ridge(base - 0.3, 0.1), art.pick(*STONES), 0.6)
    for distance in (0.6, 0.3, 0.05)[rng.integers(2) if scale < 0.35 else 2 :]:
        x = rng.uniform(-0.3, 0)
        while x < 1:
            width, top = scale * rng.uniform(0.6, 1.4), base - rng.uniform(0.2, 0.55) - 0.6 * scale
            lean = scale * rng.uniform(0, 0.4) * (0.5 - x - width / 2)  # seen from below, towers lean inwards
            floors, bays = int((base - top) * rng.uniform(9, 20)) + 2, int(width * rng.uniform(10, 22)) + 1
            art.facade([(x + lean, top), (x + lean + width, top), (x + width, base), (x, base)], floors, bays, distance)
            x += width + rng.uniform(-0.05, 0.1)
    if rng.random() < 0.3:
        art.water(min(base, 0.95), art.pick(*WATERS), 0.6)
    else:
        art.fill(base, art.lit(art.pick((95, 95, 95), (85, 110, 60))))
    if rng.random() < 0.4:
        art.trees(np.full(art.size, min(base, 1.0)), rng.uniform(0.1, 0.3), int(rng.integers(2, 12)))


def _forest(art: Canvas, rng: Generator) -> None:
    """Before a hillside of trees, or among their trunks."""
    green, light_green = art.pick(*GREENS), art.pick(*GREENS) * 1.3
    if rng.random() < 0.4:
        for near in np.linspace(0, 1, rng.integers(3, 6)):
            outline = art.ridge(0.5 + 0.6 * near, 0.08)
            art.fill(outline, art.lit(green * 0.5, 0.6 - 0.6 * near))
            art.trees(outline, rng.uniform(0.25, 0.5), int(26 - 12 * near), 0.6 - 0.6 * near)
        return
    floor = rng.uniform(0.6, 0.9)
    leaves = art.mix(green * 0.6, light_green, art.noise(20, 20, 3))
    art.cover((art.noise(8, 8, 4) - 0.25) * 3, art.lit(leaves, 0.4))
    art.fill(floor, art.lit(art.mix(green * 0.6, art.pick((120, 95, 60), (100, 120, 60)), art.ground(floor, 2))), 6)
    bark = art.pick((75, 60, 50), (50, 45, 40), (110, 100, 90), (190, 185, 175))
    for near in np.sort(rng.random(rng.integers(12, 40))):
        x, wide, foot = rng.random(), 0.01 + 0.05 * near**2, floor + 0.3 * near**2
        top, tone = x + rng.normal(0, 0.04), art.lit(bark * rng.uniform(0.7, 1.1), 0.65 - 0.65 * near)
        for part in 1, 0.4:  # the narrower one is the trunk's dark side
            trunk = [(top, -0.1), (top + 0.6 * part * wide, -0.1), (x + part * wide, foot), (x, foot)]
            art.shape(trunk, tone * (0.5 + 0.5 * part))
    art.cover((art.noise(16, 16, 3) - 0.3 - rng.uniform(0.3, 1) * art.rows) * 6, art.lit(leaves, 0.1))
    art.cover((art.noise(16, 16, 3) + 3 * (art.rows - floor) - rng.uniform(0.8, 1.6)) * 5, art.lit(leaves * 0.8))


def _glacier(art: Canvas, rng: Generator) -> None:
    """An ice front with icebergs before it, or a glacier's tongue between rocks."""
    horizon, stone = rng.uniform(0.3, 0.65), art.pick(*STONES)
    if rng.random() < 0.8:
        art.rock(art.ridge(horizon - 0.12, 0.15), stone, 0.4, rng.uniform(0, 0.4))
    deep, pale = art.pick((70, 140, 190), (95, 160, 185), (110, 140, 170)), art.pick((235, 245, 250), (215, 225, 232))
    if rng.random() < 0.5:
        foot = horizon + rng.uniform(0.15, 0.35)
        cracks = 1 - np.abs(art.noise(int(rng.integers(6, 14)), 2, 4) - 0.5) * 14
        ice = art.mix(deep, pale, art.noise(int(rng.integers(10, 24)), 3, 3) * 1.6 - 0.2)
        art.fill(art.ridge(horizon, 0.04, 0.75), art.lit(art.mix(ice, deep * 0.6, cracks * 0.8), 0.05))
        art.water(foot, art.pick(*WATERS), 0.4)
        for _ in range(rng.integers(0, 12)):
            wide, angles = rng.uniform(0.03, 0.15), np.sort(rng.uniform(np.pi, 2 * np.pi, 7))
            berg = (rng.random(), rng.uniform(foot, 1.05)) + wide * np.stack([np.cos(angles), 0.7 * np.sin(angles)], 1)
            art.shape(berg, art.lit(deep + (pale - deep) * np.float32(rng.random())))
        return
    ice = art.mix(deep, pale, 0.4 + art.ground(horizon - 0.15, rng.choice([0.4, 2])))
    cracks = 1 - np.abs(art.ground(horizon - 0.15, 3, 2) - 0.5) * rng.uniform(15, 30)
    art.fill(art.ridge(horizon, 0.03), art.lit(art.mix(ice, deep * 0.6, cracks * 0.8), 0.1))
    for side in (art.columns, 1 - art.columns):
        if rng.random() < 0.8:
            outline = art.ridge(horizon - 0.15, 0.08) + rng.uniform(1, 3) * side
            art.rock(outline, stone * 0.8, 0.1, rng.uniform(-0.2, 0.25))


def _mountain(art: Canvas, rng: Generator) -> None:
    """Ridge behind ridge, with or without snow, over a lake, a meadow or woods."""
    stone, height = art.pick(*STONES, (120, 80, 60)), rng.uniform(0.2, 0.45)
    snow = rng.uniform(0.05, 0.5) * (rng.random() < 0.5)
    layers = int(rng.integers(1, 5))
    for layer in range(layers):
        outline = art.ridge(height, rng.uniform(0.12, 0.28), rng.uniform(0.45, 0.62))
        art.rock(outline, stone * rng.uniform(0.8, 1.1), 0.6 * (1 - layer / layers) ** 1.5, snow - 0.1 * layer)
        height += rng.uniform(0.08, 0.2)
    front, foot = rng.random(), rng.uniform(0.72, 0.95)
    if front < 0.25:
        art.water(foot, art.pick(*WATERS), 0.4)
    elif front < 0.8:
        outline = art.ridge(foot, 0.05)
        art.fill(outline, art.lit(art.mix(art.pick(*GREENS, (150, 130, 80)), stone, art.ground(foot - 0.15, 2)), 0.1))
        if rng.random() < 0.5:
            art.trees(outline, rng.uniform(0.05, 0.2), int(rng.integers(10, 50)), 0.1)


def _sea(art: Canvas, rng: Generator) -> None:
    """Open water under a wide sky; sometimes with an island, sails, a beach, a cliff."""
    horizon = rng.uniform(0.2, 0.7)
    if rng.random() < 0.35:
        art.rock(art.ridge(horizon + rng.uniform(-0.1, 0.02), 0.1), art.pick(*STONES), rng.uniform(0.2, 0.7))
    art.water(horizon, art.pick(*WATERS), rng.uniform(0.4, 1.2))
    for tall in rng.uniform(0.04, 0.25, rng.integers(1, 4)) if rng.random() < 0.4 else ():
        at = np.array([rng.random(), horizon + 0.4 * tall])
        sail = np.array([(0, -1), (0.5, -0.1), (0, -0.1)])
        hull = np.array([(-0.3, -0.1), (0.5, -0.1), (0.35, 0.1), (-0.2, 0.1)])
        art.shape(at + sail * tall, art.lit(art.pick((245, 240, 235))))
        art.shape(at + hull * tall, art.lit(art.pick((120, 60, 50), (60, 60, 80))))
    if rng.random() < 0.45:
        shore = horizon + (1 - horizon) * rng.uniform(0.4, 0.9) + rng.uniform(-0.5, 0.5) * (art.columns - 0.5)
        shore = shore + 0.02 * np.sin(art.columns * rng.uniform(8, 25)) + art.ridge(0, 0.02)
        sand = art.pick((215, 190, 145), (190, 170, 140), (130, 120, 110))
        art.cover((art.rows - shore + 0.04) * 60 * art.noise(8, 16, 4), art.lit(art.pick((245, 248, 250))))
        art.fill(shore, art.lit(art.mix(sand * 0.8, sand, art.ground(horizon))), 4)
    if rng.random() < 0.25:
        art.rock(art.ridge(horizon - 0.15, 0.08) + rng.uniform(1, 3) * art.columns, art.pick(*STONES), 0.1)


def _street(art: Canvas, rng: Generator, height: float = 1) -> None:
    """A road running to its vanishing point between house fronts, with cars, lamps or trees."""
    centre, horizon = rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.65)
    eye, half = rng.uniform(1.5, 3.5), rng.uniform(3, 6)  # metres: the camera's height, half the road's width

    def at(x: Any, y: Any, z: Any) -> NDArray[np.float64]:
        """The places (n, 2) of points `x` metres to the right, `y` above the road, `z` ahead."""
        x, y, z = np.broadcast_arrays(x, y, z)
        return np.stack([centre + 0.8 * x / z, horizon + 0.8 * (eye - y) / z], -1)

    if rng.random() < 0.3:
        art.rock(art.ridge(horizon - 0.1, 0.1), art.pick(*STONES), 0.5, 0.1)
    asphalt = art.pick((90, 90, 92), (120, 115, 110), (65, 65, 72), (140, 120, 100))
    art.fill(horizon, art.lit(asphalt * (0.85 + 0.3 * art.ground(horizon))))
    ahead = np.array([1, 1, 0, 0])
    for side in (-1, 1):
        walk = half + rng.uniform(1.5, 3)
        art.shape(at(side * np.array([half, walk, walk, half]), 0, 2 + 200 * (1 - ahead)), art.lit(asphalt * 1.35))
        ends = 2 + np.cumsum(rng.uniform(5, 15, 8))[::-1]
        built = rng.choice([0, 0.92], p=[0.15, 0.85])
        for far, near in pairwise(ends):
            if rng.random() < built:
                tall = height * rng.uniform(6, 20)
                wall = at(side * walk, tall * ahead, [near, far, far, near])
                art.facade(wall, int(tall / 3), int((far - near) / 2.2), min(0.6, far / 150))
        green, has_trees = art.pick(*GREENS), rng.random() < 0.4
        for depth in range(50, 6, -9):
            foot, top = at(side * (half + 0.5), [0, 6], depth)
            if has_trees:
                art.tree(foot[0], foot[1], foot[1] - top[1], art.lit(green, depth / 100), False)
            else:
                post = np.array([-0.1, -0.1, -0.6, -0.6, 0.6, 0.6, 0.1, 0.1])
                art.shape(at(side * (half + 0.5) + post, [0, 5.6, 5.6, 6, 6, 5.6, 5.6, 0], depth), 0.4 * asphalt)
    dashes = [at([-0.1, 0.1, 0.1, -0.1], 0, depth + 2 * ahead) for depth in range(4, 60, 4)]
    art.shape(dashes, art.lit(art.pick((225, 220, 205))))
    for depth in -np.sort(-rng.uniform(7, 45, rng.integers(0, 7))):
        glass, x = art.pick((60, 75, 90)), rng.choice([-1, 1]) * rng.uniform(0.3, 0.7) * half
        paint = art.pick((170, 40, 35), (40, 60, 120), (220, 220, 220), (35, 35, 40), (200, 170, 60))
        for (middle, wide, low, high), colour in zip(CAR, (glass * 0.3, paint, paint, glass, RED, RED), strict=True):
            box = at(x + middle + wide * np.array([-1, 1, 1, -1]), low + (high - low) * ahead, depth)
            art.shape(box, art.lit(colour))


SCENES = (_buildings, _forest, _glacier, _mountain, _sea, _street)


def _photograph(rng: Generator, image: Image) -> Image:
    """What a camera adds to any scene: mirror, tilt, zoom, exposure, colour cast, blur, grain."""
    size = len(image)
    view = cv2.getRotationMatrix2D((size / 2, size / 2), rng.normal(0, 2), rng.uniform(1.05, 1.45))
    view[:, 2] += rng.uniform(-0.04, 0.04, 2) * size
    image = np.ascontiguousarray(image[:, :: rng.choice([-1, 1])])
    image = cv2.warpAffine(image, view, (size, size), None, cv2.INTER_LINEAR, cv2.BORDER_REFLECT)
    tones = 255 * (np.arange(256) / 255) ** rng.uniform(0.75, 1.35) * rng.uniform(0.8, 1.2)
    tones = np.clip(tones[:, None] * rng.normal(1, 0.05, 3), 0, 255).astype(np.uint8)
    image = cv2.LUT(image, tones[None])
    if rng.random() < 0.08:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, None, rng.uniform(0.4, 1.2))
    grain = rng.standard_normal((size, size), np.float32) * np.float32(rng.uniform(0, 9))
    return cv2.add(image, cv2.merge([grain] * 3), dtype=cv2.CV_8U)


def _draw_one(seed: int, index: int, label: int, size: int) -> Image:
    """Drawing number `index`, (size, size, 3) RGB."""
    rng = np.random.default_rng(key("sample", seed, index))
    art = Canvas(rng, size)
    SCENES[label](art, rng)
    return _photograph(rng, art.image)


def _labels(seed: int, count: int) -> NDArray[np.int64]:
    """The class of each drawing: any six neighbours hold each class once, in random order."""
    sixes = [np.random.default_rng(key("sample-label", seed, six)).permutation(6) for six in range(count // 6 + 1)]
    return np.concatenate(sixes)[:count]


def _split(labels: NDArray[np.int64], test_rows: int, rng: Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Deals the drawings at random into train and test, both balanced within one."""
    counts, rounds = np.bincount(labels, minlength=6), np.empty(len(labels), np.int64)
    for label in range(6):
        rounds[labels == label] = rng.permutation(counts[label])
    # Test takes whole rounds of the six classes; of a broken round, first the classes that have one drawing more.
    dealt = np.lexsort((-counts[labels], rounds))
    return rng.permutation(dealt[test_rows:]), rng.permutation(dealt[:test_rows])


def draw(root: Path, train_rows: int = 600, test_rows: int = 200, seed: int = 0, size: int = 150) -> None:
    """Draws the sample competition in the competition's form.

    Below `root`: train.csv, test.csv, sample_submission.csv, SceneImages/NUMBER.jpg, and test_labels.csv, the answers.
    Drawing NUMBER is a pure function of (seed, NUMBER, size); the row counts only decide who is train and who test.
    Does nothing where a train.csv already is.

    Args:
        root: The folder to make; it may exist if it is empty.
        train_rows: How many labelled images.
        test_rows: How many images to predict.
        seed: Another seed, another competition.
        size: Height and width in pixels.

    Raises:
        UserError: If `root` holds other files.
    """
    root = Path(root).resolve()
    if (root / "train.csv").exists():
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root}: holds files but no train.csv; name a new or an empty folder for the sample")
    labels = _labels(seed, train_rows + test_rows)
    train, test = _split(labels, test_rows, np.random.default_rng(key("sample-split", seed)))
    tables = {
        "train.csv": ["image_name,label", *(f"{index}.jpg,{labels[index]}" for index in train)],
        "test.csv": ["image_name", *(f"{index}.jpg" for index in test)],
        "sample_submission.csv": ["image_name,label", *(f"{index}.jpg,0" for index in test)],
        "test_labels.csv": ["image_name,label", *(f"{index}.jpg,{labels[index]}" for index in test)],
    }
    half_done = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    try:
        (half_done / "SceneImages").mkdir(parents=True)
        for index, label in enumerate(labels):
            picture = _draw_one(seed, index, label, size)[..., ::-1]
            _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
            (half_done / "SceneImages" / f"{index}.jpg").write_bytes(jpeg.tobytes())
        for name, lines in tables.items():
            (half_done / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
        half_done.replace(root)
    finally:
        shutil.rmtree(half_done, ignore_errors=True)
