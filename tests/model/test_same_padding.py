"""Convolutions with SAME padding give the same results as timm's, including gradients."""

import pytest
import torch
from torch import nn

from scenes.config import ModelConfig
from scenes.model.backbone import create_body, timm
from scenes.model.same_padding import SameConvolution, pad_inside


def pair(channels: int, kernel: int | tuple[int, int], stride: int, dilation: int) -> tuple[nn.Module, nn.Module]:
    """A timm convolution and ours with the same weights; depthwise, except with three channels."""
    torch.manual_seed(0)
    options = {"stride": stride, "dilation": dilation, "groups": 1 if channels == 3 else channels}
    theirs = timm.layers.Conv2dSame(channels, 4 if channels == 3 else channels, kernel, **options)
    ours = nn.Sequential(timm.layers.Conv2dSame(channels, theirs.out_channels, kernel, **options))
    ours[0].load_state_dict(theirs.state_dict())
    pad_inside(ours)
    assert isinstance(ours[0], SameConvolution)
    return theirs, ours


@pytest.mark.parametrize("side", [(14, 14), (15, 15), (14, 17)])
@pytest.mark.parametrize("kernel", [1, 3, 5, 4, (3, 5)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("channels", [3, 8])
def test_results_and_gradients_stay(
    channels: int, kernel: int | tuple[int, int], stride: int, dilation: int, side: tuple[int, int]
) -> None:
    theirs, ours = pair(channels, kernel, stride, dilation)
    images = torch.rand(2, channels, *side)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))
    results = [module(images).square().sum() for module in (ours, theirs)]
    for result in results:
        result.backward()
    for mine, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-4, atol=1e-4)


def test_a_body_pads_inside() -> None:
    body = create_body(ModelConfig(name="tf_efficientnet_lite0", weights="none"), 64)
    convolutions = [module for module in body.modules() if isinstance(module, timm.layers.Conv2dSame)]
    assert len(convolutions) == 5
    assert all(isinstance(module, SameConvolution) for module in convolutions)
