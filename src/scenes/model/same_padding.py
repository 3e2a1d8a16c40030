"""TensorFlow's SAME padding inside the convolutions, where timm copies images into larger ones."""

from timm.layers import Conv2dSame, get_same_padding
from torch import Tensor, is_grad_enabled, nn
from torch.nn import functional


def pad_inside(body: nn.Module) -> None:
    """Makes timm's convolutions with SAME padding pad by themselves; weights and results stay the same."""
    for module in body.modules():
        if type(module) is Conv2dSame:
            module.__class__ = SameConvolution


class SameConvolution(Conv2dSame):
    """Its output has ⌈side / stride⌉ pixels per side; an odd pixel of padding goes to the right and the bottom."""

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (n, c, h, w) to (n, d, ⌈h / stride⌉, ⌈w / stride⌉)."""
        axes = zip(images.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
        added = [get_same_padding(*axis) for axis in axes]
        padding, (odd_rows, odd_columns) = [-(-pixels // 2) for pixels in added], [pixels % 2 for pixels in added]
        kernels = self.weight
        if odd_rows or odd_columns:
            enlarges = kernels.shape[1] == 1 and self.dilation == (1, 1)
            if not enlarges or is_grad_enabled() or images.device.type != "cpu":
                return super().forward(images)  # larger kernels would be slower
            # The extra pixel at the top or the left is multiplied by zero.
            kernels = functional.pad(kernels, (odd_columns, 0, odd_rows, 0))
        return functional.conv2d(images, kernels, self.bias, self.stride, padding, self.dilation, self.groups)
