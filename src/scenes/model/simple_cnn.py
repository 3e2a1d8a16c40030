"""A small CNN trained from scratch: the baseline that every pretrained backbone must beat."""

from torch import Tensor, nn


class SimpleCNN(nn.Module):
    """Five strided convolutions with batch norm, each halving the image, then the mean over all positions."""

    num_features = 256
    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}  # noqa: RUF012 - timm's name and form

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 256, 256)) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                )
                for before, width in zip((3, *widths), widths, strict=False)
            )
        )

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Groups parameters into stages, in timm's form."""
        return {"blocks": r"^blocks\.(\d+)"}

    def forward(self, images: Tensor) -> Tensor:
        """Maps normalised images (n, 3, h, w), with sides of at least 32 pixels, to features (n, 256)."""
        return self.blocks(images).mean((2, 3))
