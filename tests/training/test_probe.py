"""A logistic regression on features that are computed once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from scenes.config import ModelConfig
from scenes.model.backbone import Classifier
from scenes.training.probe import DEFAULT_STRENGTH, STRENGTHS, body_features, fit_head

CPU = torch.device("cpu")
SIZE = 32


def blobs(counts: list[int], width: int = 6, spread: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of shape (n, f) around a centre a class, each dimension of a scale of its own; and targets."""
    generator = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(counts)), counts)
    centres = np.random.default_rng(99).normal(size=(len(counts), width))
    features = centres[targets] + spread * generator.normal(size=(len(targets), width))
    scaled = features * np.logspace(-2, 2, width) + np.arange(width)
    return scaled.astype(np.float32), targets


# -------------------------------------------------------------------------------------------------- the head


@pytest.mark.parametrize("counts", [[40, 30, 50, 20], [60, 40], [3, 4, 2], [200, 1, 1], [2, 3]])
def test_a_separable_problem_is_solved(counts: list[int]) -> None:
    features, targets = blobs(counts)
    weights, biases, strength = fit_head(features, targets, len(counts), 0)
    assert weights.shape == (len(counts), 6)
    assert biases.shape == (len(counts),)
    assert weights.dtype == biases.dtype == np.float32
    assert strength in STRENGTHS
    if min(counts) >= 5:
        unseen, truth = blobs(counts, seed=1)
        assert ((unseen @ weights.T + biases).argmax(1) == truth).mean() > 0.97


def regression(features: np.ndarray, targets: np.ndarray, strength: float) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(features)
    return scaler, LogisticRegression(C=strength, max_iter=300).fit(scaler.transform(features), targets)


@pytest.mark.parametrize("counts", [[40, 30, 50], [3, 4, 2], [50, 8, 9, 7, 12]])
def test_logits_are_scikit_learns(counts: list[int]) -> None:
    features, targets = blobs(counts, spread=1.0)
    weights, biases, strength = fit_head(features, targets, len(counts), 0)
    scaler, fitted = regression(features, targets, strength)
    expected = fitted.decision_function(scaler.transform(features))
    np.testing.assert_allclose(features @ weights.T + biases, expected, atol=2e-3)


@pytest.mark.parametrize("counts", [[50, 30], [4, 3]])
def test_two_classes_get_two_logits(counts: list[int]) -> None:
    features, targets = blobs(counts, spread=1.0)
    weights, biases, strength = fit_head(features, targets, 2, 0)
    scaler, fitted = regression(features, targets, strength)
    logits = torch.from_numpy(features @ weights.T + biases)
    expected = fitted.predict_proba(scaler.transform(features))
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=1e-3)


def test_the_strength_follows_the_data() -> None:
    clear, targets = blobs([60, 60, 60], spread=0.2)
    noise = np.random.default_rng(0).normal(size=(180, 40)).astype(np.float32)
    assert fit_head(clear, targets, 3, 0)[2] == max(STRENGTHS)
    assert fit_head(noise, targets, 3, 0)[2] == min(STRENGTHS)


@pytest.mark.parametrize(("counts", "chosen"), [([4, 30, 30], False), ([5, 5, 5, 5, 5, 5, 5], True)])
def test_rare_classes_leave_no_row_aside(counts: list[int], chosen: bool) -> None:
    features, targets = blobs(counts, spread=0.05)
    strength = fit_head(features, targets, len(counts), 0)[2]
    assert (strength != DEFAULT_STRENGTH) == chosen


def test_a_feature_that_never_varies_is_harmless() -> None:
    features, targets = blobs([20, 20, 20])
    features[:, 2] = 3.0
    weights, biases, _ = fit_head(features, targets, 3, 0)
    assert np.isfinite(weights).all()
    assert np.isfinite(biases).all()
    np.testing.assert_allclose(weights[:, 2], 0, atol=1e-6)


def test_the_same_seed_gives_the_same_bytes() -> None:
    features, targets = blobs([40, 30, 50], spread=1.0)
    one, other = (fit_head(features, targets, 3, 2**63 + 11) for _ in range(2))
    assert one[0].tobytes() == other[0].tobytes()
    assert one[1].tobytes() == other[1].tobytes()
    assert one[2] == other[2]


# ---------------------------------------------------------------------------------------------- the features


class Pictures(list[np.ndarray]):
    """What body_features asks of images."""

    def __init__(self, count: int = 5, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        super().__init__(generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(count))
        self.pixel_hashes = np.array([f"{generator.integers(2**32):032x}" for _ in self])


def make(seed: int = 0, **options: Any) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(ModelConfig(**({"name": "test_efficientnet"} | options)), SIZE, 3)


def compute(
    model: Classifier, images: Pictures, cache: Path, size: int = SIZE, batch_size: int = 2, precision: str = "fp32"
) -> np.ndarray:
    return body_features(model, images, size, batch_size, CPU, 0, cache, precision)  # type: ignore[arg-type]


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
    cases: list[tuple[Classifier, Pictures, int]] = [
        (make(), images, SIZE),
        (make(1), images, SIZE),
        (nudged(lambda model: model.body.bn1.running_mean.add_(1e-3)), images, SIZE),
        (nudged(lambda model: model.mean.add_(1)), images, SIZE),
        (make(), images, 48),
        (make(), fewer, SIZE),
        (make(), reordered, SIZE),
        (make(), others, SIZE),
        (make(pool="max"), images, SIZE),  # no weight differs, and every feature
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
