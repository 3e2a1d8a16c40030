"""The gradients of depthwise convolutions in bf16 match float32's, within the precision of bf16."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scenes.model.depthwise import DepthwiseConvolution, fast_gradients


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    rest=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    seed=st.integers(0, 2**31),
)
def test_gradients_are_torchs_own(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], rest: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    height, width = (side + more for side, more in zip(kernel, rest, strict=True))
    images = torch.randn(2, 5, height, width, generator=generator, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(5, 1, *kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    wanted = torch.conv2d(images, kernels, None, stride, padding, 1, 5)
    found = DepthwiseConvolution.apply(images, kernels, stride, padding)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    for gradient, reference in zip(
        torch.autograd.grad((found * weights).sum(), (images, kernels)),
        torch.autograd.grad((wanted * weights).sum(), (images, kernels)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, reference)


def test_a_network_trains_to_the_same_gradients() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, 2, 2, groups=8), nn.Conv2d(8, 8, 3, groups=8, dilation=2), nn.Flatten(1)
    ).to(memory_format=torch.channels_last)
    images = torch.rand(4, 3, 20, 20)
    with torch.autocast("cpu", torch.bfloat16):
        network(images).square().mean().backward()
        wanted = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        network.zero_grad()
        with fast_gradients(torch.device("cpu")):
            assert "DepthwiseConvolution" in type(network[1](network[0](images)).grad_fn.next_functions[0][0]).__name__
            loss = network(images).square().mean()
    loss.backward()
    for parameter, reference in zip(network.parameters(), wanted, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - reference).norm() < 0.02 * reference.norm()
