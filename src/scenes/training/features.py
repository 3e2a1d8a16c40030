"""The features of a frozen body, computed once for all folds and runs."""

from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from scenes.console import Meter
from scenes.data.batches import EvalImages, eval_loader
from scenes.data.images import Images
from scenes.files import make_folder, write_atomic
from scenes.inference.predict import SplitWhenOutOfMemory, autocast
from scenes.model.backbone import Classifier
from scenes.model.device import synchronise
from scenes.model.fusion import fuse_batch_norms
from scenes.model.prefetch import prefetched


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
        size: The image size in pixels.
        batch_size: Images at a time.
        device: Where the model is.
        workers: Loader processes, or ``auto``.
        cache: The cache folder.
        precision: The autocast type: ``fp32``, ``bf16`` or ``fp16``.

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
    with path.open("wb") as file:  # given a path, np.save would append a suffix
        np.save(file, features, allow_pickle=False)


def _key(model: Classifier, images: Images, size: int, device: torch.device, precision: str) -> str:
    config = model.config  # the pooling changes the features but no weight
    about = f"{config.name} {config.pool} {size} {device.type} {precision}\n"
    digest = blake2b(about.encode(), digest_size=12)
    digest.update("".join(images.pixel_hashes.tolist()).encode())
    digest.update(images.shapes.tobytes())  # runs with larger image sizes keep sharper images
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
    body = SplitWhenOutOfMemory(lambda canvas: fused(model.normalise(canvas.to(device, non_blocking=True))))
    done = []
    with torch.inference_mode(), autocast(device, precision):
        for batch in prefetched(loader, device):
            done.append(body(batch.canvases[size].permute(0, 3, 1, 2)).float().to("cpu", non_blocking=True))
            meter.advance()
    synchronise(device)
    meter.close()
    return torch.cat(done).numpy()
