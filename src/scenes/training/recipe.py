"""How a step trains, as pure functions of the step: learning rates, frozen parts, parameter groups, class weights."""

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
    """The body's learning rate at a step.

    Args:
        step: Counted from 0.
        schedule: Says how many steps there are.
        train: The training settings.
        costs: What the plateau schedule minimises, for each finished epoch.
    """
    total = schedule.steps
    if train.schedule == "one_cycle":
        peak = max(1, round(total * ONE_CYCLE_RISE))
        if step < peak:
            return train.lr * (ONE_CYCLE_START + (1 - ONE_CYCLE_START) * _cosine_decay(1 - step / peak))
        return train.lr * _cosine_decay((step - peak) / max(1, total - peak))
    warmup = min(round(train.warmup_epochs * schedule.steps / max(1, schedule.epochs)), total // 2)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    if train.schedule == "cosine":
        return train.lr * _cosine_decay((step - warmup) / max(1, total - warmup))
    if train.schedule == "plateau":
        return train.lr * PLATEAU_FACTOR ** count_plateaus(costs, train.plateau_patience)
    return train.lr


def _cosine_decay(progress: float) -> float:
    """Falls along a cosine from 1 to 0 as `progress` goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def count_plateaus(losses: Sequence[float], patience: int) -> int:
    """Counts how often the loss went without a new minimum for more than `patience` epochs."""
    best, waited, count = math.inf, 0, 0
    for loss in losses:
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited > patience:
            count, waited = count + 1, 0
    return count


def trainable_stages(train: TrainConfig, epoch: int) -> Stages:
    """How many of the body's last stages train in an epoch; a table's entry applies until the next one."""
    table = train.trainable_stages
    if not isinstance(table, dict):
        return table
    started = [start for start in table if start <= epoch]
    return table[max(started)] if started else 0


def stages_by_phase(train: TrainConfig) -> list[Stages]:
    """How many of the body's last stages train, for each phase of training."""
    table = train.trainable_stages
    return list(table.values()) if isinstance(table, dict) else [table]


def body_is_frozen(train: TrainConfig) -> bool:
    """Whether the body never trains, so that its features can be computed once."""
    return train.epochs == 0 or all(stages == 0 for stages in stages_by_phase(train))


def freezes_batch_norm(train: TrainConfig, is_pretrained: bool) -> bool:
    """Whether batch norms keep their running statistics.

    On images near to ImageNet (5,000 scenes, EfficientNet-Lite0), weights trained with batch statistics score 2 to 6
    points lower, whichever statistics prediction then uses; on images far from it (seedlings), a point higher:
    benchmarks/RESULTS.md.
    """
    return is_pretrained if train.batch_norm == "auto" else train.batch_norm == "frozen"


def has_batch_norm(model: Classifier) -> bool:
    """Whether a network contains batch norms."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def starts_with_probe(train: TrainConfig, model: Classifier) -> bool:
    """Whether a pretrained body's head starts as a linear probe.

    If batch norms learn their statistics, the first step changes the features that the probe was fitted to.
    """
    keeps_features = freezes_batch_norm(train, is_pretrained=True) or body_is_frozen(train) or not has_batch_norm(model)
    return train.linear_probe and keeps_features


def synchronise_batch_norms(model: Classifier) -> None:
    """Makes batch norms that learn use the rows of all processes, on GPUs; changes the model in place."""
    from timm.layers import convert_sync_batchnorm  # torch's own would drop the activation in timm's batch norms

    model.body = convert_sync_batchnorm(model.body)


def set_modes(model: Classifier, stages: Stages, frozen_batch_norm: bool) -> None:
    """Puts the model into training mode with all but the last `stages` of its body frozen.

    Args:
        model: The network.
        stages: How many stages of the body train, or ``all``.
        frozen_batch_norm: Whether batch norms use their running statistics and leave them unchanged.
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
        model.body.eval()  # no drop path in a frozen body


def parameter_groups(model: Classifier, train: TrainConfig) -> list[dict[str, Any]]:
    """Groups the weights for the optimiser: head and body, or the body's stages, with and without weight decay.

    Biases and norms (everything one-dimensional) are not decayed, nor is what the body itself exempts, such as position
    embeddings and class tokens. With ``layer_decay`` the rate of each stage of the body is that of the stage above it
    times this factor (Clark et al. 2020, arXiv:2003.10555, section 3).

    Returns:
        Groups with ``scale``, their learning rate as a multiple of the body's highest.
    """
    names = [name for name, _ in model.body.named_parameters()]
    parts = [(names, 1.0)]
    if train.layer_decay < 1:
        parts = [(names, train.layer_decay**depth) for depth, names in enumerate(model.stages()[::-1])]
    named = [([(name, model.body.get_parameter(name)) for name in names], scale) for names, scale in parts]
    named.append((list(model.head.named_parameters()), (train.head_lr or train.lr) / train.lr))
    exempt = set(model.body.no_weight_decay()) if hasattr(model.body, "no_weight_decay") else set()
    groups = []
    for parameters, scale in named:
        decayed = [parameter for name, parameter in parameters if parameter.ndim > 1 and name not in exempt]
        others = [parameter for name, parameter in parameters if parameter.ndim <= 1 or name in exempt]
        for chosen, decay in ((decayed, train.weight_decay), (others, 0.0)):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "scale": scale})
    return groups


def make_optimizer(model: Classifier, train: TrainConfig) -> torch.optim.Optimizer:
    """Makes the optimiser; its learning rates are set at every step."""
    groups = parameter_groups(model, train)
    if train.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=train.momentum > 0)
    is_on_gpu = model.mean.device.type == "cuda"
    return torch.optim.AdamW(groups, lr=train.lr, fused=is_on_gpu or None)  # one kernel instead of hundreds


def make_average(model: Classifier, train: TrainConfig) -> AveragedModel | None:
    """Makes the average of the last epochs' weights (LAWA, arXiv:2209.14981); None if only the last epoch counts."""
    if train.average_epochs == 1:
        return None
    # Not torch's default averaging on a GPU, which cannot average integer buffers.
    return AveragedModel(model, avg_fn=get_swa_avg_fn(), use_buffers=True)


def class_weights(train: TrainConfig, targets: np.ndarray, classes: int) -> torch.Tensor | None:
    """The weight of each class in the loss, float32, shape (classes,); with ``balanced`` all classes count the same."""
    if train.class_weights is None:
        return None
    if train.class_weights == "balanced":
        counts = np.bincount(targets, minlength=classes)
        return torch.tensor(len(targets) / (classes * np.maximum(counts, 1)), dtype=torch.float32)
    return torch.tensor(train.class_weights, dtype=torch.float32)


def mix(images: torch.Tensor, targets: torch.Tensor, train: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes a batch with its reverse, by mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899).

    Args:
        images: Shape (n, 3, s, s).
        targets: float32, shape (n, outputs).
        train: Says how strongly; random numbers come from NumPy's global generator.

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
