"""Fuses batch norms into the convolutions before them: the same predictions in less time."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from scenes.model.backbone import Classifier

# Relative to the largest feature; convolutions on a GPU round coarsely (TF32).
TOLERANCES = {"cpu": 1e-3, "cuda": 1e-2}


def fuse_batch_norms(body: nn.Module, image_size: int) -> nn.Module:
    """Copies a body for prediction and fuses each batch norm that directly follows a convolution.

    Args:
        body: In float32 and evaluation mode.
        image_size: The side of its input in pixels.

    Returns:
        The copy; or the body itself if the copy's features differ, e.g. because a convolution standardises its weights
        or its output is used elsewhere too.
    """
    device = next(body.parameters()).device
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        pairs, wanted = _pairs(body, image)
        if not pairs:
            return body
        fused = copy.deepcopy(body)
        for norm_name, convolution_name in pairs.items():
            norm, convolution = fused.get_submodule(norm_name), fused.get_submodule(convolution_name)
            assert isinstance(norm, nn.BatchNorm2d)
            assert isinstance(convolution, nn.Conv2d)
            fused.set_submodule(convolution_name, fuse_conv_bn_eval(convolution, norm))
            fused.set_submodule(norm_name, _rest(norm))
        found = fused(image)
    tolerance = TOLERANCES.get(device.type, TOLERANCES["cuda"])
    return fused if (found - wanted).abs().max() <= tolerance * wanted.abs().max() else body


@contextmanager
def fused(model: Classifier, image_size: int) -> Iterator[None]:
    """Fuses a network's batch norms within the block."""
    body = model.body
    model.body = fuse_batch_norms(body.eval(), image_size)
    try:
        yield
    finally:
        model.body = body


def _pairs(body: nn.Module, image: Tensor) -> tuple[dict[str, str], Tensor]:
    """Finds batch norms whose input is a convolution's output, by name; also returns the features."""
    outputs: list[tuple[str, Tensor]] = []
    pairs: dict[str, str] = {}
    hooks = []
    names = {module: name for name, module in body.named_modules()}

    def note_output(convolution: nn.Module, _: object, output: Tensor) -> None:
        outputs.append((names[convolution], output))

    def note_input(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for name, output in outputs:
            if output is inputs[0]:
                pairs[names[norm]] = name

    for module in names:
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(note_output))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(note_input))
    features = body(image)
    for hook in hooks:
        hook.remove()
    return pairs, features


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """What a norm does besides normalising: timm's include the activation."""
    rest = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*rest) if rest else nn.Identity()
