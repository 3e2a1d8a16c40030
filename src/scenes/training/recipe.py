"""How a step trains, as pure functions of the step: rates, what is frozen, parameter groups, losses' weights."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from scenes.config import Stages, TrainConfig
from scenes.data.batches import Schedule
from scenes.model.backbone import Classifier

ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25
PLATEAU_FACTOR = 0.1


def learning_rate(step: int, schedule: Schedule, train: TrainConfig, costs: Sequence[float] = ()) -> float:
    """The body's rate at a step.

    Args:
        step: From 0.
        schedule: Says how many steps there are.
        train: The config.
        costs: What the plateau schedule lowers, for each finished epoch.
    """
    total = schedule.steps
    if train.schedule == "one_cycle":
        top = max(1, round(total * ONE_CYCLE_RISE))
        if step < top:
            return train.lr * (ONE_CYCLE_START + (1 - ONE_CYCLE_START) * _half_cosine(1 - step / top))
        return train.lr * _half_cosine((step - top) / max(1, total - top))
    warmup = min(round(train.warmup_epochs * schedule.steps / max(1, schedule.epochs)), total // 2)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    if train.schedule == "cosine":
        return train.lr * _half_cosine((step - warmup) / max(1, total - warmup))
    if train.schedule == "plateau":
        return train.lr * PLATEAU_FACTOR ** plateaus(costs, train.plateau_patience)
    return train.lr


def _half_cosine(part: float) -> float:
    """Falls smoothly from 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * part))


def plateaus(losses: Sequence[float], patience: int) -> int:
    """Counts how often the loss went without a new minimum for more than `patience` epochs."""
    best, waited, count = math.inf, 0, 0
    for loss in losses:
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited > patience:
            count, waited = count + 1, 0
    return count


def trainable_stages(train: TrainConfig, epoch: int) -> Stages:
    """How many of the body's last stages train in an epoch; an entry of a table holds until the next one."""
    table = train.trainable_stages
    if not isinstance(table, dict):
        return table
    begun = [start for start in table if start <= epoch]
    return table[max(begun)] if begun else 0


def every_stages(train: TrainConfig) -> list[Stages]:
    """How many of the body's last stages train, for each part of training."""
    table = train.trainable_stages
    return list(table.values()) if isinstance(table, dict) else [table]


def body_is_frozen(train: TrainConfig) -> bool:
    """Whether the body never trains, so that its features can be computed once."""
    return train.epochs == 0 or all(stages == 0 for stages in every_stages(train))


def freezes_batch_norm(train: TrainConfig, is_pretrained: bool) -> bool:
    """Whether batch norms keep their running statistics.

    Near to ImageNet (5,000 scenes, EfficientNet-Lite0) weights trained under the statistics of batches score 2 to 6
    points lower, whichever statistics they are then predicted with; far from it (seedlings) a point higher:
    benchmarks/RESULTS.md.
    """
    return is_pretrained if train.batch_norm == "auto" else train.batch_norm == "frozen"


def has_batch_norm(model: Classifier) -> bool:
    """Whether a network has batch norms."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def starts_with_probe(train: TrainConfig, model: Classifier) -> bool:
    """Whether a pretrained body's head starts as a linear probe.

    The probe would not fit if batch norms learnt their statistics: the first step changes the features.
    """
    are_fixed = freezes_batch_norm(train, is_pretrained=True) or body_is_frozen(train) or not has_batch_norm(model)
    return train.linear_probe and are_fixed


def synchronise_batch_norms(model: Classifier) -> None:
    """Lets batch norms that learn take the statistics of all processes' rows, on GPUs; changes the model in place."""
    from timm.layers import convert_sync_batchnorm  # torch's own would lose the activation of timm's batch norms

    model.body = convert_sync_batchnorm(model.body)


def set_modes(model: Classifier, stages: Stages, frozen_batch_norm: bool) -> None:
    """Puts the model into training mode with all but the last `stages` of its body frozen.

    Args:
        model: The network.
        stages: How many stages of the body train, or ``all``.
        frozen_batch_norm: Batch norms use their running statistics and leave them as they are.
    """
    model.train()
    groups = model.stages()[-stages:] if stages != "all" and stages > 0 else []
    trained = {name for group in groups for name in group}
    for name, parameter in model.body.named_parameters():
        parameter.requires_grad_(stages == "all" or name in trained)
    for module in model.body.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            is_frozen = any(not parameter.requires_grad for parameter in module.parameters(recurse=False))
            module.train(not (frozen_batch_norm or is_frozen))
    if stages == 0:
        model.body.eval()  # no drop path in a body that does not train


def parameter_groups(model: Classifier, train: TrainConfig) -> list[dict[str, Any]]:
    """Groups the weights for the optimiser: head and body, or the body's stages, with and without weight decay.

    Not decayed are biases and norms (all that has one dimension) and what the body itself names, such as position
    embeddings and class tokens. Under ``layer_decay`` each stage of the body has that part of the rate of the one above
    it (Clark et al. 2020, arXiv:2003.10555, section 3).

    Returns:
        Groups with ``scale``, their rate as a multiple of the highest of the body.
    """
    names = [name for name, _ in model.body.named_parameters()]
    parts = [(names, 1.0)]
    if train.layer_decay < 1:
        parts = [(names, train.layer_decay**depth) for depth, names in enumerate(model.stages()[::-1])]
    named = [([(name, model.body.get_parameter(name)) for name in names], scale) for names, scale in parts]
    named.append((list(model.head.named_parameters()), (train.head_lr or train.lr) / train.lr))
    spared = set(model.body.no_weight_decay()) if hasattr(model.body, "no_weight_decay") else set()
    groups = []
    for parameters, scale in named:
        decayed = [parameter for name, parameter in parameters if parameter.ndim > 1 and name not in spared]
        others = [parameter for name, parameter in parameters if parameter.ndim <= 1 or name in spared]
        for chosen, decay in ((decayed, train.weight_decay), (others, 0.0)):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "scale": scale})
    return groups


def make_optimizer(model: Classifier, train: TrainConfig) -> torch.optim.Optimizer:
    """Makes the optimiser; its rates are set at every step."""
    groups = parameter_groups(model, train)
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=train.momentum > 0)
    is_on_gpu = model.mean.device.type == "cuda"
    return torch.optim.AdamW(groups, lr=train.lr, fused=is_on_gpu or None)  # one kernel instead of hundreds


def make_average(model: Classifier, train: TrainConfig) -> AveragedModel | None:
    """Makes the mean of the weights after the last epochs (LAWA, arXiv:2209.14981); None if the last one's count."""
    if train.average_epochs == 1:
        return None
    # Not torch's default for parameters on a GPU, which cannot average the integers among the buffers.
    return AveragedModel(model, avg_fn=get_swa_avg_fn(), use_buffers=True)


def class_weights(train: TrainConfig, targets: np.ndarray, classes: int) -> torch.Tensor | None:
    """Weights of the loss by class, float32, shape (classes,); ``balanced`` makes every class count the same."""
    if train.class_weights is None:
        return None
    if train.class_weights == "balanced":
        counts = np.bincount(targets, minlength=classes)
        return torch.tensor(len(targets) / (classes * np.maximum(counts, 1)), dtype=torch.float32)
    return torch.tensor(train.class_weights, dtype=torch.float32)


def mix(images: torch.Tensor, targets: torch.Tensor, train: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes a batch with its own reverse, by mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899).

    Args:
        images: (n, 3, s, s).
        targets: float32, shape (n, outputs).
        train: Says how strongly; draws are from NumPy's global generator.

    Returns:
        Images and targets of the same shapes.
    """
    from timm.data.mixup import cutmix_bbox_and_lam

    is_cut = train.cutmix > 0 and (train.mixup == 0 or np.random.rand() < 0.5)
    strength = train.cutmix if is_cut else train.mixup
    share = np.random.beta(strength, strength)
    if is_cut:
        (top, bottom, left, right), share = cutmix_bbox_and_lam(images.shape, share)
        images = images.clone()
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    else:
        images = images.float()
        images = images * share + images.flip(0) * (1 - share)
    return images, targets * share + targets.flip(0) * (1 - share)
