"""Augmentation depends on (seed, fold, epoch, row) alone, and a list that cannot work is refused."""

import inspect
import random
from collections import Counter
from typing import Any

import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from scenes.console import UserError
from scenes.data.augment import PRESETS, AugmentedImages, compose
from scenes.data.batches import Sample, Schedule, StepSampler, resize, train_loader

CPU = torch.device("cpu")
SIZE = 24
# One of each way to draw at random, including OpenCV's generator, and nested composites.
MIXTURE: list[Any] = [
    {"OneOf": {"transforms": ["HorizontalFlip", {"SomeOf": {"transforms": ["Transpose", "D4"], "n": 1, "p": 1.0}}]}},
    {"ElasticTransform": {"p": 1.0}},
    {"GridDistortion": {"p": 0.5}},
    {"GaussNoise": {"p": 0.7}},
    {"ISONoise": {"p": 1.0}},
    {"ShotNoise": {"p": 0.5}},
    {"RandomRain": {"p": 0.5}},
    {"PixelDropout": {"p": 0.5}},
    {"MotionBlur": {"p": 0.5}},
    {"CoarseDropout": {"fill": "random"}},
]


def pictures(*shapes: tuple[int, int]) -> list[np.ndarray]:
    """Smooth random images."""
    generator = np.random.default_rng(0)
    return [cv2.GaussianBlur(generator.integers(0, 256, (*shape, 3), np.uint8), (5, 5), 0) for shape in shapes]


IMAGES = pictures((40, 50), (64, 64), (33, 90), (20, 20))
SAMPLES = [Sample(row, epoch) for epoch in range(2) for row in range(len(IMAGES))]


def augmented(augment: Any, seed: int = 1, fold: int = 2, size: int = SIZE) -> AugmentedImages:
    return AugmentedImages(IMAGES, augment, size, seed, fold)  # type: ignore[arg-type]


def disturbed(data: AugmentedImages, order: list[int]) -> dict[int, np.ndarray]:
    """Augments the samples in the given order, while other code draws from every global generator."""
    made = {}
    for place in order:
        random.random()
        np.random.rand()
        cv2.randu(np.zeros((3, 3), np.uint8), 0, 9)
        data.image(Sample(place % 3, 17 + place))
        made[place] = data.image(SAMPLES[place])
    return made


@pytest.mark.parametrize("augment", [*PRESETS, MIXTURE], ids=[*PRESETS, "mixture"])
def test_augmentation_is_a_pure_function(augment: Any) -> None:
    data = augmented(augment)
    inorder = [data.image(sample) for sample in SAMPLES]
    shuffled = random.Random(1).sample(range(len(SAMPLES)), len(SAMPLES))
    for place, image in disturbed(augmented(augment), shuffled).items():
        np.testing.assert_array_equal(image, inorder[place])


def test_every_transform_of_the_library_is_pure_or_refused() -> None:
    large = [place for place, sample in enumerate(SAMPLES) if min(IMAGES[sample.row].shape[:2]) >= SIZE][:3]
    shuffled = random.Random(2).sample(large, len(large))
    names = [name for name, c in vars(A).items() if inspect.isclass(c) and issubclass(c, A.BasicTransform)]
    usable = []
    for name in names:
        try:
            compose([name], SIZE)
        except UserError:
            continue
        usable.append(name)
        one: list[Any] = [{name: {"p": 1.0}}]
        data = augmented(one)
        inorder = {place: data.image(SAMPLES[place]) for place in large}
        assert {(image.shape, image.dtype.name) for image in inorder.values()} == {((SIZE, SIZE, 3), "uint8")}, name
        for place, image in disturbed(augmented(one), shuffled).items():
            np.testing.assert_array_equal(image, inorder[place], name)
    assert len(usable) > 70
    assert {"ISONoise", "RandomRain", "RandomCrop", "Affine"} <= set(usable)
    # They do not return a uint8 image, or need more than the image.
    assert not {"Normalize", "ToFloat", "ToTensorV2", "MaskDropout", "Mosaic", "HistogramMatching"} & set(usable)


class Snow(A.ImageOnlyTransform):
    """Draws from OpenCV's own generator, as some versions of albumentations do."""

    def apply(self, img: np.ndarray, **_: Any) -> np.ndarray:
        noise = np.empty_like(img)
        return cv2.randu(noise, 0, 256)


def test_what_opencv_draws_at_random_is_pure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(A, "Snow", Snow, raising=False)
    data = augmented([{"Snow": {"p": 1.0}}])
    forward = disturbed(data, list(range(len(SAMPLES))))
    backward = disturbed(data, list(range(len(SAMPLES)))[::-1])
    for place, image in forward.items():
        np.testing.assert_array_equal(image, backward[place])
    assert len({image.tobytes() for image in forward.values()}) == len(SAMPLES)


@pytest.mark.parametrize("augment", ["light", "medium", "strong", MIXTURE], ids=["light", "medium", "strong", "mix"])
def test_rows_epochs_seeds_and_folds_differ(augment: Any) -> None:
    same = IMAGES[1]
    made = [
        AugmentedImages([same, same], augment, 40, seed, fold).image(Sample(row, epoch)).tobytes()  # type: ignore[arg-type]
        for seed, fold, row, epoch in ((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0))
    ]
    assert len(set(made)) == 5


def test_workers_change_nothing() -> None:
    schedule = Schedule(np.arange(len(IMAGES)), 4, 3, 0, 0)
    augment = [*PRESETS["strong"], *MIXTURE]

    def batches(workers: int) -> list[tuple[np.ndarray, list[int]]]:
        loader = train_loader(augmented(augment), StepSampler(schedule, 1), workers, CPU, 3 * 64**2)
        return [(batch.images.numpy(), batch.rows.tolist()) for batch in loader]

    alone, helped = batches(0), batches(2)
    assert len(alone) == len(helped) == schedule.steps - 1
    for (images, rows), (others, other_rows) in zip(alone, helped, strict=True):
        assert rows == other_rows
        np.testing.assert_array_equal(images, others)
    assert [row for _, rows in alone for row in rows] == [
        sample.row for step in range(1, schedule.steps) for sample in schedule.batch(step)
    ]


def test_starting_a_loader_draws_from_no_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(train_loader(augmented("light"), StepSampler(Schedule(np.arange(4), 1, 2, 0, 0), 0), 0, CPU, 3 * 64**2)))
    assert torch.equal(before, torch.get_rng_state())


# ------------------------------------------------------------------------------------- the user's own lists


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        (["HorizontalFlop"], r"no transform 'HorizontalFlop'.*HorizontalFlip"),
        (["OneOff"], "no transform 'OneOff'.*OneOf"),
        (["cv2"], "no transform 'cv2'"),
        (["Compose.__init__"], "no transform"),
        ([{"GaussNoise": {"var_limit": [10, 50]}}], "GaussNoise.*var_limit"),
        ([{"HorizontalFlip": {"always_apply": True}}], "HorizontalFlip.*always_apply"),
        ([{"HorizontalFlip": {"prob": 0.5}}], "HorizontalFlip.*prob"),
        ([{"HorizontalFlip": {"p": 7}}], "HorizontalFlip"),
        (["ShiftScaleRotate"], "ShiftScaleRotate.*Affine"),
        ([{"OneOf": {}}], "OneOf"),
        ([{"OneOf": {"transforms": "Blur"}}], "OneOf"),
        ([{"OneOf": {"transforms": [3]}}], "each entry is one transform.*3"),
        ([{"OneOf": {"transforms": [{"Blur": 0.5}]}}], "each entry is one transform"),
        ([{"OneOf": {"transforms": ["Blurr"]}}], "no transform 'Blurr'.*Blur"),
        ([{"Blur": {}, "ToGray": {}}], "each entry is one transform"),
        (["Normalize"], "Normalize.*uint8"),
        ([{"ToGray": {"num_output_channels": 1}}], "ToGray.*uint8"),
        (["MaskDropout"], "MaskDropout.*mask"),
        (["BasicTransform"], "BasicTransform"),
    ],
)
def test_a_wrong_list_is_refused(augment: Any, says: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)^augment: .*{says}"):
        compose(augment, SIZE)


@pytest.mark.parametrize(
    "augment",
    [
        *PRESETS,
        ["RandomResizedCrop"],
        ["RandomCrop"],
        ["CenterCrop"],
        [{"Resize": {}}],
        [{"Resize": {"height": 9, "width": 13}}],
        [{"RandomCrop": {"height": 9, "width": 13}}],
        [{"RandomResizedCrop": {"size": [8, 8], "scale": [0.5, 1.0], "p": 1.0}}],
        [{"OneOf": {"transforms": ["RandomCrop", {"OneOf": {"transforms": ["Blur", "RandomResizedCrop"]}}]}}],
        [],
    ],
    ids=str,
)
def test_the_result_is_always_a_square_image(augment: Any) -> None:
    data = AugmentedImages(pictures((1, 500), (700, 1), (1, 1), (2, 3), (90, 40)), augment, 20, 0, 0)  # type: ignore[arg-type]
    batch = data.__getitems__([Sample(row, epoch) for epoch in range(6) for row in range(5)])
    assert batch.images.shape == (30, 20, 20, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.rows.tolist() == list(range(5)) * 6


def test_an_image_that_a_transform_cannot_take_is_named() -> None:
    data = AugmentedImages(pictures((30, 30), (1, 50)), [{"GridDistortion": {"p": 1.0}}], SIZE, 0, 0)  # type: ignore[arg-type]
    assert data.image(Sample(0, 0)).shape == (SIZE, SIZE, 3)
    with pytest.raises(UserError, match=r"row 2 .1×50 pixels.*ZeroDivisionError"):
        data.image(Sample(1, 0))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_the_sky_above(name: str) -> None:
    bright_top = np.ascontiguousarray(
        np.broadcast_to(np.linspace(255, 0, 60).astype(np.uint8)[:, None, None], (60, 60, 3))
    )
    data = AugmentedImages([bright_top], name, 60, 0, 0)  # type: ignore[arg-type]
    made = np.stack([data.image(Sample(0, epoch)).mean(2) for epoch in range(150)])
    down = made[:, :30].mean((1, 2)) - made[:, 30:].mean((1, 2))
    aside = made[:, :, :30].mean((1, 2)) - made[:, :, 30:].mean((1, 2))
    assert (down > 0).mean() > 0.98
    assert (np.abs(aside) < down).mean() > 0.95


@pytest.mark.parametrize(("name", "share"), [("none", 0.0), ("light", 0.5), ("medium", 0.5), ("strong", 0.5)])
def test_presets_mirror_every_second_image(name: str, share: float) -> None:
    bright_left = np.ascontiguousarray(np.broadcast_to(np.linspace(255, 0, 60).astype(np.uint8)[:, None], (60, 60, 3)))
    data = AugmentedImages([bright_left], name, 60, 0, 0)  # type: ignore[arg-type]
    made = np.stack([data.image(Sample(0, epoch)).mean(2) for epoch in range(200)])
    mirrored = (made[:, :, :30].mean((1, 2)) < made[:, :, 30:].mean((1, 2))).mean()
    assert abs(mirrored - share) < 0.1


@pytest.mark.parametrize(("symmetry", "count"), [("none", 1), ("mirror", 2), ("all", 8)])
def test_the_symmetry_decides_which_flips_and_turns_are_seen(symmetry: str, count: int) -> None:
    corner = np.zeros((60, 60, 3), np.uint8)
    corner[:30, :20] = 255  # looks different under all eight symmetries of the square
    data = AugmentedImages([corner], "light", 60, 0, 0, symmetry=symmetry)  # type: ignore[arg-type]
    small = [cv2.resize(data.image(Sample(0, epoch)), (4, 4), interpolation=cv2.INTER_AREA) for epoch in range(300)]
    ways = [np.rot90(way, turns) for way in (corner, corner[:, ::-1]) for turns in range(4)]
    targets = [cv2.resize(np.ascontiguousarray(way), (4, 4), interpolation=cv2.INTER_AREA) for way in ways]
    nearest = [int(np.argmin([np.abs(image.astype(int) - way).sum() for way in targets])) for image in small]
    seen = [way for way, times in Counter(nearest).items() if times > 15]
    assert len(seen) == count


@pytest.mark.parametrize("shape", [(24, 24), (36, 36), (12, 12)])
def test_without_augmentation_training_sees_what_prediction_sees(shape: tuple[int, int]) -> None:
    (image,) = pictures(shape)
    np.testing.assert_array_equal(compose("none", SIZE)(image=image)["image"], resize(image, SIZE))


def test_the_mixture_is_a_mixture() -> None:
    """Otherwise the tests of purity above would cover only one branch."""
    kinds = Counter(augmented(MIXTURE[:1], size=40).image(Sample(1, epoch)).tobytes() for epoch in range(40))
    assert len(kinds) > 3
