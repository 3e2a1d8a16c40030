"""The features of a frozen body, computed once for all folds and runs."""

from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from scenes.config import Config
from scenes.console import Meter
from scenes.data.batches import EvalImages, eval_loader
from scenes.data.images import Images
from scenes.files import make_folder, write_atomic
from scenes.inference.predict import SplitWhenOutOfMemory, autocast
from scenes.model.backbone import Classifier
from scenes.model.device import choose_precision, synchronise
from scenes.model.fusion import fuse_batch_norms
from scenes.model.prefetch import prefetched


def body_features(model: Classifier, images: Images, size: int, config: Config) -> np.ndarray:
    """Computes the pooled features of every image, once for all folds and runs.

    Args:
        model: On the device to compute on.
        images: n images.
        size: The image size in pixels.
        config: Has the cache folder, and the precision, batch size and workers of prediction.

    Returns:
        float32, shape (n, f).
    """
    cache, precision = config.data.cache, choose_precision(config.infer.precision, model.mean.device)
    path = cache / f"features-{_key(model, images, size, precision)}.npy"
    if not path.exists():
        make_folder(cache)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                computed = _compute(model, images, size, config, precision)
                write_atomic(path, lambda temporary: _save(temporary, computed))
    return np.load(path, allow_pickle=False)


def _save(path: Path, features: np.ndarray) -> None:
    with path.open("wb") as file:  # given a path, np.save would append a suffix
        np.save(file, features, allow_pickle=False)


def _key(model: Classifier, images: Images, size: int, precision: str) -> str:
    config = model.config  # the pooling changes the features but no weight
    about = f"{config.name} {config.pool} {size} {model.mean.device.type} {precision}\n"
    digest = blake2b(about.encode(), digest_size=12)
    digest.update("".join(images.pixel_hashes.tolist()).encode())
    digest.update(images.shapes.tobytes())  # runs with larger image sizes keep sharper images
    for name, tensor in {**model.body.state_dict(), "mean": model.mean, "std": model.std}.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def _compute(model: Classifier, images: Images, size: int, config: Config, precision: str) -> np.ndarray:
    model.eval()
    device, batch_size = model.mean.device, config.infer.batch_size
    rows = EvalImages(images, np.arange(len(images)), [size])
    loader = eval_loader(rows, batch_size, config.loader.workers, device)
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
