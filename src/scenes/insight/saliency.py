"""Grad-CAM: which parts of an image a prediction is based on (Selvaraju et al. 2017, arXiv:1610.02391)."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from scenes.config import Config
from scenes.data.batches import resize
from scenes.insight.results import HeldOut
from scenes.model.backbone import Classifier
from scenes.model.device import choose_device
from scenes.model.weights import load_classifier
from scenes.runs import Run

PACKAGE = "captum"


def is_available() -> bool:
    """Whether captum is installed."""
    return find_spec(PACKAGE) is not None


def spatial_layer(model: Classifier, size: int) -> nn.Module | None:
    """Finds the last layer whose output is a spatial map; None for networks that work on tokens.

    Args:
        model: Any network.
        size: Image size in pixels.
    """
    outputs: list[tuple[nn.Module, Tensor]] = []

    def record(layer: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append((layer, output))

    hooks = [layer.register_forward_hook(record) for layer in model.body.modules()]
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=model.mean.device))
    finally:
        for hook in hooks:
            hook.remove()
    for layer, output in reversed(outputs):
        if output.ndim == 3:  # tokens follow the last spatial map
            return None
        # Channels first, and square like the image.
        if output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
            return layer
    return None


def grad_cam(model: Classifier, layer: nn.Module, images: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Computes heat maps of the evidence for a class.

    Args:
        model: A float32 network on its device.
        layer: From `spatial_layer`.
        images: RGB, uint8, shape (n, s, s, 3).
        targets: int, shape (n,): the class, or output, to explain for each image.

    Returns:
        float32, shape (n, s, s), in 0 … 1; the maximum of each map is 1, or 0 if nothing is evidence for the class.
    """
    from captum.attr import LayerGradCam

    device = model.mean.device
    inputs = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
    cam = LayerGradCam(model.eval(), layer)
    found = cam.attribute(inputs, target=torch.from_numpy(targets).to(device), relu_attributions=True)
    maps = found.detach()[:, 0].float().cpu().numpy()
    maps /= np.maximum(maps.max((1, 2), keepdims=True), 1e-12)
    side = images.shape[1]
    return np.stack([cv2.resize(one, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1) for one in maps])


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draws a heat map over its image: RGB, uint8, shape (h, w, 3).

    Args:
        image: RGB, uint8, shape (h, w, 3).
        heat: float32, shape (s, s), in 0 … 1.
    """
    heat = cv2.resize(heat, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colours = cv2.cvtColor(cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(gray, 0.45, colours, 0.55, 0)


def explain(
    run: Run,
    config: Config,
    held: HeldOut,
    rows: Sequence[int],
    outputs: np.ndarray,
    images: Mapping[str, np.ndarray],
) -> tuple[dict[int, np.ndarray], str]:
    """Explains predictions, each with the network of the fold that held the image out.

    Args:
        run: A run with these folds trained.
        config: Its config.
        held: Its held-out rows.
        rows: Which rows to explain.
        outputs: int, shape (n,): the output to explain for each held-out row.
        images: Decoded images by name; rows without one are left out.

    Returns:
        A map from `grad_cam` for each row, and a sentence on what the maps show or why there are none.
    """
    if not is_available():
        return {}, f"No Grad-CAM: pip install {PACKAGE}, then python src/report.py {run.folder}"
    device, size = choose_device(), config.predict_size
    maps: dict[int, np.ndarray] = {}
    for fold in np.unique(held.folds[list(rows)]):
        chosen = [row for row in rows if held.folds[row] == fold and held.names[row] in images]
        if not chosen:
            continue
        model = load_classifier(run.weights_file(int(fold)), config).to(device)
        layer = spatial_layer(model, size)
        if layer is None:
            return {}, f"No Grad-CAM: {config.model.name} works on tokens and has no spatial map."
        pixels = np.stack([resize(images[held.names[row]], size) for row in chosen])
        maps |= dict(zip(chosen, grad_cam(model, layer, pixels, outputs[chosen]), strict=True))
    what = {"classes": "the predicted class", "labels": "the first label named", "number": "a larger number"}
    return maps, f"Beside each image, Grad-CAM: bright areas are evidence for {what[held.task.kind]}."
