"""The features of a frozen body are computed once."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from scenes.config import Config, ModelConfig
from scenes.model.backbone import Classifier
from scenes.training.features import body_features

SIZE = 32


class Pictures(list[np.ndarray]):
    """The part of Images that body_features uses."""

    def __init__(self, count: int = 5, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        super().__init__(generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(count))
        self.pixel_hashes = np.array([f"{generator.integers(2**32):032x}" for _ in self])
        self.shapes = np.array([image.shape[:2] for image in self])


def make(seed: int = 0, **options: Any) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(ModelConfig(**({"name": "test_efficientnet"} | options)), SIZE, 3)


def compute(
    model: Classifier, images: Pictures, cache: Path, size: int = SIZE, batch_size: int = 2, precision: str = "fp32"
) -> np.ndarray:
    settings = {"batch_size": batch_size, "precision": precision}
    config = Config(name="tiny", data={"cache": cache}, infer=settings, loader={"workers": 0})  # type: ignore[arg-type]
    return body_features(model, images, size, config)  # type: ignore[arg-type]


def by_hand(model: Classifier, images: list[np.ndarray]) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return model.features(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)).numpy()


def test_features_are_what_the_body_makes_of_the_images(tmp_path: Path) -> None:
    model, images = make().train(), Pictures()
    features = compute(model, images, tmp_path / "cache")
    assert features.dtype == np.float32
    assert features.shape == (5, 256)
    np.testing.assert_allclose(features, by_hand(model, list(images)), atol=1e-5)


def test_they_are_computed_once(tmp_path: Path) -> None:
    images = Pictures()
    calls: list[int] = []

    def counted() -> Classifier:
        model = make()
        model.body.register_forward_hook(lambda *_: calls.append(1))
        return model

    first = compute(counted(), images, tmp_path)
    assert calls
    calls.clear()
    second = compute(counted(), images, tmp_path, batch_size=5)
    assert not calls
    np.testing.assert_array_equal(first, second)
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_whatever_changes_features_changes_their_name(tmp_path: Path) -> None:
    images = Pictures()

    def files() -> set[str]:
        return {path.name for path in tmp_path.glob("*.npy")}

    def nudged(change: Any) -> Classifier:
        model = make()
        with torch.no_grad():
            change(model)
        return model

    fewer, reordered, others = Pictures(4), Pictures(), Pictures(seed=1)
    reordered.pixel_hashes = reordered.pixel_hashes[::-1]
    reordered.reverse()
    sharper = Pictures()
    sharper.shapes = 2 * sharper.shapes  # the same files, as kept by a run with larger images
    cases: list[tuple[Classifier, Pictures, int]] = [
        (make(), images, SIZE),
        (make(1), images, SIZE),
        (nudged(lambda model: model.body.bn1.running_mean.add_(1e-3)), images, SIZE),
        (nudged(lambda model: model.mean.add_(1)), images, SIZE),
        (make(), images, 48),
        (make(), fewer, SIZE),
        (make(), reordered, SIZE),
        (make(), others, SIZE),
        (make(), sharper, SIZE),
        (make(pool="max"), images, SIZE),  # no weight differs, but every feature does
    ]
    for number, (model, pictures, size) in enumerate(cases, 1):
        compute(model, pictures, tmp_path, size)
        assert len(files()) == number, number
    compute(make(), images, tmp_path, precision="bf16")
    assert len(files()) == len(cases) + 1
    np.testing.assert_allclose(compute(make(pool="max"), images, tmp_path), _fresh(make(pool="max"), images, tmp_path))


def _fresh(model: Classifier, images: Pictures, folder: Path) -> np.ndarray:
    return compute(model, images, folder / "fresh")


def test_the_head_is_no_part_of_the_name(tmp_path: Path) -> None:
    images = Pictures()
    model = make()
    compute(model, images, tmp_path)
    with torch.no_grad():
        model.head[-1].weight.add_(1)
    compute(model, images, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 1
