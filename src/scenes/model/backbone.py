"""The network: uint8 images in, logits out. A timm body, normalising with the weights' own statistics, a head."""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scenes.config import ModelConfig
from scenes.console import UserError
from scenes.environment import import_torchvision
from scenes.model.simple_cnn import SimpleCNN

import_torchvision()
import timm  # noqa: E402 - needs a torchvision that imports
from timm.models import group_parameters  # noqa: E402


def create_body(name: str, image_size: int, pool: str | None = None, pretrained: bool = False) -> nn.Module:
    """Creates a network that maps normalised images to pooled features.

    Args:
        name: A timm model name, or ``simple_cnn``.
        image_size: Pixels; position embeddings of transformers are made for it.
        pool: timm's global_pool; None for the model's own.
        pretrained: Download the weights through timm.

    Raises:
        UserError: If there is no such model.
    """
    if name == "simple_cnn":
        return SimpleCNN()
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, [*timm.list_models(), "simple_cnn"], 3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise UserError(f"model.name: timm has no model {name!r}; {hint}")
    options: dict[str, Any] = {"global_pool": pool} if pool else {}
    if (timm.get_pretrained_cfg(architecture) or timm.models.PretrainedCfg()).fixed_input_size:
        options["img_size"] = image_size
    try:
        body = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (RuntimeError, AssertionError, TypeError) as error:
        if pretrained:
            raise
        raise UserError(f"model.name: {name} cannot be made at image_size {image_size}: {error}") from None
    if hasattr(body, "pre_logits") and architecture.startswith("vgg"):
        # VGG's two 4096-wide layers hold 120 of its 135 million weights and belong to ImageNet's classes.
        body.pre_logits = nn.Identity()
    return body


class Classifier(nn.Module):
    """A body and a head for one competition.

    Attributes:
        body: Maps normalised images (n, 3, s, s) to features (n, f).
        head: Maps features to logits (n, classes).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, image_size: int, classes: int) -> None:
        super().__init__()
        self.body = create_body(config.name, image_size, config.pool)
        statistics = self.body.pretrained_cfg
        for name in ("mean", "std"):
            # In units of a byte, as images arrive; saved with the weights, which are useless without.
            self.register_buffer(name, torch.tensor(statistics[name]).view(1, 3, 1, 1) * 255)
        with torch.no_grad():
            width = self.body.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]
        hidden = config.hidden
        layers = [nn.Dropout(config.dropout), nn.Linear(width, hidden), nn.ReLU()] if hidden else []
        self.head = nn.Sequential(*layers, nn.Dropout(config.dropout), nn.Linear(hidden or width, classes))

    def features(self, images: Tensor) -> Tensor:
        """Maps uint8 RGB images (n, 3, s, s) to pooled features (n, f)."""
        return self.body((images.float() - self.mean) / self.std)

    def forward(self, images: Tensor) -> Tensor:
        """Maps uint8 RGB images (n, 3, s, s) to logits (n, classes)."""
        return self.head(self.features(images))

    def stages(self) -> list[list[str]]:
        """Groups the body's parameter names by stage as timm does, input first."""
        groups: Mapping[Any, list[str]] = group_parameters(self.body, self.body.group_matcher(coarse=True))
        return [groups[stage] for stage in sorted(groups)]


def parameter_count(model: nn.Module) -> int:
    """Counts a network's weights."""
    return sum(parameter.numel() for parameter in model.parameters())
