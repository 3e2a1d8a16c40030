"""Fast gradients of depthwise convolutions in bf16 on a CPU, from operations that oneDNN has fast kernels for.

With torch's own gradients, two thirds of a training step of EfficientNet-Lite0 go into those of the inputs at stride 2
and those of kernels larger than 3 x 3.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PIECE = 3  # the side of kernels whose gradient is fast


def fast_gradients(device: torch.device, is_compiled: bool = False) -> AbstractContextManager[object]:
    """A context for the forward pass of training; it changes nothing unless on a CPU and not compiled."""
    return _FastGradients() if device.type == "cpu" and not is_compiled else nullcontext()


class _FastGradients(TorchFunctionMode):
    """Turns depthwise convolutions on a CPU under bf16 autocast into `DepthwiseConvolution`s."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.conv2d:
            return _convolve(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def _convolve(
    images: Tensor,
    kernels: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`functional.conv2d`, with the faster gradients where they apply."""
    is_depthwise = 1 < groups == len(kernels) and kernels.shape[1] == 1 and min(kernels.shape[2:]) >= PIECE
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    if not is_depthwise or dtype == torch.float32 or isinstance(padding, str) or dilation not in (1, (1, 1)):
        return functional.conv2d(images, kernels, bias, stride, padding, dilation, groups)
    stride, padding = ((value, value) if isinstance(value, int) else tuple(value) for value in (stride, padding))
    if any(pad >= side for pad, side in zip(padding, kernels.shape[2:], strict=True)):
        return functional.conv2d(images, kernels, bias, stride, padding, dilation, groups)
    result: Tensor = DepthwiseConvolution.apply(images.to(dtype), kernels.to(dtype), stride, padding)
    return result if bias is None else result + bias.to(dtype).view(-1, 1, 1)


class DepthwiseConvolution(torch.autograd.Function):
    """Convolves each channel with its own kernel.

    Its arguments are images (n, c, h, w), kernels (c, 1, k, l) of the same dtype, and stride and padding of both axes.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernels: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        """Returns the outputs, (n, c, H, W)."""
        ctx.save_for_backward(images, kernels)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(images, kernels, None, stride, padding, 1, len(kernels))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Returns the gradients of images and kernels, given that of the outputs."""
        images, kernels = ctx.saved_tensors
        grad_outputs = gradients[0].contiguous(memory_format=torch.channels_last)
        grad_images = grad_kernels = None
        if ctx.needs_input_grad[0]:
            grad_images = _gradient_of_images(grad_outputs, images, kernels, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            grad_kernels = _gradient_of_kernels(grad_outputs, images, kernels, ctx.stride, ctx.padding)
        return grad_images, grad_kernels, None, None


def _gradient_of_images(
    grad_outputs: Tensor, images: Tensor, kernels: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Convolves the gradient of the outputs, spread out by the stride, with the kernels rotated by 180°."""
    if stride == (1, 1):
        return _torch_gradients(grad_outputs, images, kernels, stride, padding, (True, False, False))[0]
    (count, channels, height, width), sides = images.shape, kernels.shape[2:]
    spread = grad_outputs.new_zeros(count, height + sides[0] - 1, width + sides[1] - 1, channels).permute(0, 3, 1, 2)
    rows, columns = (
        slice(side - 1 - pad, side - 1 - pad + step * (length - 1) + 1, step)
        for side, pad, step, length in zip(sides, padding, stride, grad_outputs.shape[2:], strict=True)
    )
    spread[:, :, rows, columns] = grad_outputs
    return functional.conv2d(spread, kernels.flip(2, 3), None, 1, 0, 1, channels)


def _gradient_of_kernels(
    grad_outputs: Tensor, images: Tensor, kernels: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Assembles the gradient from those of pieces of the kernels, each over its part of the images."""
    if tuple(kernels.shape[2:]) == (PIECE, PIECE):
        return _torch_gradients(grad_outputs, images, kernels, stride, padding, (False, True, False))[1]
    padded = functional.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    height, width = (step * (length - 1) + PIECE for step, length in zip(stride, grad_outputs.shape[2:], strict=True))
    gradient, piece = torch.empty_like(kernels), kernels[:, :, :PIECE, :PIECE].contiguous()
    for top in _piece_starts(kernels.shape[2]):
        for left in _piece_starts(kernels.shape[3]):
            seen = padded[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)
            part = _torch_gradients(grad_outputs, seen, piece, stride, (0, 0), (False, True, False))[1]
            gradient[:, :, top : top + PIECE, left : left + PIECE] = part
    return gradient


def _piece_starts(side: int) -> list[int]:
    """Where pieces start to cover a kernel's side; the last one may overlap the one before."""
    return [min(start, side - PIECE) for start in range(0, side, PIECE)]


def _torch_gradients(
    grad_outputs: Tensor,
    images: Tensor,
    kernels: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's own gradients of images, kernels and bias, where wanted."""
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad_outputs, images, kernels, None, stride, padding, (1, 1), False, (0, 0), len(kernels), wanted
    )
    return gradients
