"""The six kinds of scenes of the built-in sample, as drawings."""

from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from scenes.competition.sample_canvas import CAR, GREENS, RED, STONES, WATERS, Canvas, Image
from scenes.randomness import key


def _buildings(art: Canvas, rng: Generator) -> None:
    """Towers, from a far skyline to a few seen from close below; behind water, trees or nothing."""
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
    """In front of a hillside of trees, or among their trunks."""
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
    """An ice front with icebergs in front of it, or a glacier's tongue between rocks."""
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
    """Ridge behind ridge, with or without snow, above a lake, a meadow or woods."""
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


def draw_image(seed: int, index: int, label: int, size: int) -> Image:
    """Drawing number `index`, (size, size, 3) RGB."""
    rng = np.random.default_rng(key("sample", seed, index))
    art = Canvas(rng, size)
    SCENES[label](art, rng)
    return _photograph(rng, art.image)
