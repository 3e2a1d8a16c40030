"""The network, from uint8 images to logits: normalisation with the weights' own statistics, a timm body, a head."""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scenes.competition.task import Task, class_task
from scenes.config import ModelConfig
from scenes.console import UserError
from scenes.environment import import_timm
from scenes.model.simple_cnn import SimpleCNN

import_timm()
import timm  # noqa: E402 - needs a torchvision that imports
from timm.models import group_parameters  # noqa: E402

from scenes.model.same_padding import pad_inside  # noqa: E402


def create_body(config: ModelConfig, image_size: int, pretrained: bool = False) -> nn.Module:
    """Creates a network that maps normalised images to pooled features.

    Args:
        config: Has the name, pool and drop path.
        image_size: In pixels; transformers' position embeddings are made for it.
        pretrained: Download the weights through timm.

    Raises:
        UserError: If there is no such model.
    """
    name, pool, drop_path = config.name, config.pool, config.drop_path
    if name == "simple_cnn":
        if pool:
            raise UserError(f"model.pool: {pool} is for timm's models; simple_cnn always averages")
        if drop_path:
            raise UserError("model.drop_path is for timm's models; simple_cnn has no paths to drop")
        return SimpleCNN()
    _check_name(name)
    architecture = name.partition(".")[0]
    options: dict[str, Any] = {"global_pool": pool} if pool else {}
    if drop_path:
        options["drop_path_rate"] = drop_path
    if (timm.get_pretrained_cfg(architecture) or timm.models.PretrainedCfg()).fixed_input_size:
        options["img_size"] = image_size
    try:
        body = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (RuntimeError, AssertionError, TypeError) as error:
        if pretrained:
            raise
        raise UserError(f"model.name: {name} cannot be created at image_size {image_size}: {error}") from None
    if hasattr(body, "pre_logits") and architecture.startswith("vgg"):
        # VGG's two 4096-wide layers hold 120 of its 135 million weights and belong to ImageNet's classes.
        body.pre_logits = nn.Identity()
    pad_inside(body)
    return body


def _check_name(name: str) -> None:
    """Rejects names that timm does not have; ARCHITECTURE alone is valid, a TAG after it names the weights."""
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        known = timm.list_pretrained(f"{architecture}.*")
        if not tag or name in known:
            return
    else:
        known = [*timm.list_models(), "simple_cnn"]
    near = difflib.get_close_matches(name, known, 3) or difflib.get_close_matches(architecture, known, 3)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models(pretrained=True) lists them"
    raise UserError(f"model.name: timm has no model {name!r}; {hint}")


def has_pretrained(name: str) -> bool:
    """Whether timm can download a model's weights; for other models some versions silently give random ones."""
    found = timm.get_pretrained_cfg(name) if name != "simple_cnn" else None
    return found is not None and bool(found.has_weights)


class Classifier(nn.Module):
    """A body and a head for one competition.

    Attributes:
        config: What it was created from.
        name: For messages; `load_folds` sets it to the fold's.
        task: What the logits mean.
        body: Maps normalised images (n, 3, s, s) to features (n, f).
        head: Maps features to logits (n, outputs).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, image_size: int, task: Task | int) -> None:
        """Creates the network with random weights; `task` may be just a number of classes."""
        super().__init__()
        self.config = config
        self.task = class_task([str(at) for at in range(task)]) if isinstance(task, int) else task
        self.name = config.name
        self.body = create_body(config, image_size)
        statistics = self.body.pretrained_cfg
        for name in ("mean", "std"):
            # On the images' scale, 0 to 255; saved with the weights, which depend on them.
            self.register_buffer(name, torch.tensor(statistics[name]).view(1, 3, 1, 1) * 255)
        try:
            with torch.no_grad():
                width = self.body.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"image_size: {config.name} does not take {image_size} px: {error}") from None
        hidden = config.hidden
        layers = [nn.Dropout(config.dropout), nn.Linear(width, hidden), nn.ReLU()] if hidden else []
        self.head = nn.Sequential(*layers, nn.Dropout(config.dropout), nn.Linear(hidden or width, self.task.outputs))

    def reset_head(self) -> None:
        """Gives the head new random weights."""
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def normalise(self, images: Tensor) -> Tensor:
        """Maps uint8 RGB images (n, 3, s, s) to the body's input."""
        return (images.float() - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """Maps uint8 RGB images (n, 3, s, s) to pooled features (n, f)."""
        return self.body(self.normalise(images))

    def forward(self, images: Tensor) -> Tensor:
        """Maps uint8 RGB images (n, 3, s, s) to logits (n, outputs), float32."""
        return self.logits(self.features(images))

    def logits(self, features: Tensor) -> Tensor:
        """Maps features (n, f) to logits (n, outputs), in float32 even under autocast.

        In bf16 many logits of a row would be equal, and ties go to the first class.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())

    def predictions(self, features: Tensor) -> Tensor:
        """Maps features (n, f) to predictions (n, outputs) as the task defines them, float32."""
        return self.task.activate(self.logits(features))

    def stages(self) -> list[list[str]]:
        """Groups the body's parameter names by stage as timm does, input first.

        Raises:
            UserError: If timm does not know the model's stages.
        """
        if not hasattr(self.body, "group_matcher"):
            raise UserError(
                f"timm knows no stages of {self.config.name}: "
                f"set train.trainable_stages to all or 0, train.layer_decay to 1"
            )
        groups: Mapping[Any, list[str]] = group_parameters(self.body, self.body.group_matcher(coarse=True))
        *stages, last = [groups[stage] for stage in sorted(groups)]
        if all(self.body.get_parameter(name).ndim == 1 for name in last):
            stages[-1] += last  # a norm after the last stage belongs to it
        else:
            stages.append(last)
        return stages


def parameter_count(model: nn.Module) -> int:
    """Counts a network's weights."""
    return sum(parameter.numel() for parameter in model.parameters())
