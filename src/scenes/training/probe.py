"""A linear probe: the frozen body's features, computed once, and a logistic regression on them."""

import warnings
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from scenes.competition.metric import log_losses
from scenes.console import Meter
from scenes.data.batches import EvalImages, eval_loader
from scenes.data.images import Images
from scenes.files import make_folder, write_atomic
from scenes.inference.predict import InParts, autocast
from scenes.model.backbone import Classifier
from scenes.model.fusion import fuse_batch_norms
from scenes.randomness import key

# Inverse regularisation, from strong to weak; standardised features of a good body want it strong.
STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
DEFAULT_STRENGTH = 3e-3
MAX_STEPS = 300
MIN_ROWS_TO_CHOOSE = 5  # of each class, else the fifth would lack some


def body_features(
    model: Classifier,
    images: Images,
    size: int,
    batch_size: int,
    device: torch.device,
    workers: int | str,
    cache: Path,
    precision: str,
) -> np.ndarray:
    """Computes the pooled features of every image, once for all folds and runs.

    Args:
        model: On `device`.
        images: n images.
        size: Pixels.
        batch_size: Images at a time.
        device: Where the model is.
        workers: Loader processes, or ``auto``.
        cache: The folder of all caches.
        precision: ``fp32``, ``bf16`` or ``fp16``, the autocast type.

    Returns:
        float32, shape (n, f).
    """
    path = cache / f"features-{_key(model, images, size, device, precision)}.npy"
    if not path.exists():
        make_folder(cache)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                computed = _compute(model, images, size, batch_size, device, workers, precision)
                write_atomic(path, lambda temporary: _save(temporary, computed))
    return np.load(path, allow_pickle=False)


def _save(path: Path, features: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would append a suffix to a name
        np.save(file, features, allow_pickle=False)


def _key(model: Classifier, images: Images, size: int, device: torch.device, precision: str) -> str:
    config = model.config  # the pool changes features and no weight
    about = f"{config.name} {config.pool} {size} {device.type} {precision}\n"
    digest = blake2b(about.encode(), digest_size=12)
    digest.update("".join(images.pixel_hashes.tolist()).encode())
    for name, tensor in {**model.body.state_dict(), "mean": model.mean, "std": model.std}.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def _compute(
    model: Classifier,
    images: Images,
    size: int,
    batch_size: int,
    device: torch.device,
    workers: int | str,
    precision: str,
) -> np.ndarray:
    model.eval()
    loader = eval_loader(EvalImages(images, np.arange(len(images)), [size]), batch_size, workers, device)
    meter = Meter(len(loader), "features of the frozen body", "img", batch_size)
    fused = fuse_batch_norms(model.body, size)
    body = InParts(lambda pictures: fused(model.normalise(pictures)))
    done = []
    with torch.inference_mode(), autocast(device, precision):
        for batch in loader:
            pictures = batch.canvases[size].to(device, non_blocking=True)
            done.append(body(pictures.permute(0, 3, 1, 2)).float().cpu())
            meter.advance()
    meter.close()
    return torch.cat(done).numpy()


def fit_head(
    features: np.ndarray, targets: np.ndarray, classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fits a logistic regression, its regularisation chosen by log loss on a fifth of these rows.

    Args:
        features: float32, shape (n, f).
        targets: int, shape (n,), every class present.
        classes: How many.
        seed: Of the fifth's choice.

    Returns:
        Weights (classes, f) and biases (classes,) in float32 for features as they are, and the chosen strength.
    """
    strength = DEFAULT_STRENGTH
    if np.bincount(targets, minlength=classes).min() >= MIN_ROWS_TO_CHOOSE:
        part = 1 / MIN_ROWS_TO_CHOOSE
        kept, held = train_test_split(
            np.arange(len(targets)), test_size=part, stratify=targets, random_state=key("probe", seed) % 2**32
        )
        losses = {}
        scaler, regression = StandardScaler(), LogisticRegression(max_iter=MAX_STEPS, warm_start=True)
        for candidate in STRENGTHS:  # each starts from the one before
            _fit(scaler, regression.set_params(C=candidate), features[kept], targets[kept])
            probabilities = regression.predict_proba(scaler.transform(features[held]))
            losses[candidate] = float(log_losses(probabilities, targets[held]).mean())
        strength = min(losses, key=lambda candidate: losses[candidate])
    scaler, regression = StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_STEPS)
    _fit(scaler, regression, features, targets)
    weights, biases = regression.coef_, regression.intercept_
    if classes == 2:  # scikit-learn keeps one row for two classes
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    scaled = weights / scaler.scale_
    return scaled.astype(np.float32), (biases - scaled @ scaler.mean_).astype(np.float32), strength


def _fit(scaler: StandardScaler, regression: LogisticRegression, features: np.ndarray, targets: np.ndarray) -> None:
    """Fits both in place to features of shape (n, f)."""
    rows = scaler.fit_transform(features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after so many steps the rest does not matter
        regression.fit(rows, targets)
