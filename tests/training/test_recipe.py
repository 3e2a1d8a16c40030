"""Rates, freezing, parameter groups and class weights, as pure functions of the step."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scenes.config import ModelConfig, TrainConfig
from scenes.data.batches import Schedule
from scenes.model.backbone import Classifier
from scenes.training.recipe import (
    body_is_frozen,
    class_weights,
    count_plateaus,
    freezes_batch_norm,
    learning_rate,
    make_average,
    make_optimizer,
    mix,
    parameter_groups,
    set_modes,
    trainable_stages,
)

LR = 0.02


def rates(
    rows: int = 100, epochs: int = 4, batch: int = 10, costs: Sequence[float] = (), **options: Any
) -> list[float]:
    train = TrainConfig(**({"lr": LR, "epochs": epochs, "batch_size": batch} | options))
    schedule = Schedule(np.arange(rows), epochs, batch, 0, 0)
    return [learning_rate(step, schedule, train, costs) for step in range(schedule.steps)]


# ----------------------------------------------------------------------------------------------------- rates


def test_cosine_warms_up_and_falls_to_almost_nothing() -> None:
    made = rates(schedule="cosine", warmup_epochs=0.5)
    assert len(made) == 40
    np.testing.assert_allclose(made[:6], [LR / 5, LR * 2 / 5, LR * 3 / 5, LR * 4 / 5, LR, LR])
    assert (np.diff(made[5:]) < 0).all()
    assert made[5 + 17] == pytest.approx(LR * (1 + math.cos(math.pi * 17 / 35)) / 2)
    assert 0 < made[-1] < 0.005 * LR


def test_one_cycle() -> None:
    made = rates(schedule="one_cycle", warmup_epochs=3)
    assert made[0] == pytest.approx(LR / 25)
    assert made[12] == max(made) == pytest.approx(LR)  # 30 % of 40 steps
    assert (np.diff(made[:13]) > 0).all()
    assert (np.diff(made[12:]) < 0).all()
    assert 0 < made[-1] < 0.005 * LR


def test_constant() -> None:
    assert rates(schedule="constant", warmup_epochs=0) == [LR] * 40
    assert rates(schedule="constant", warmup_epochs=0.2)[:3] == [LR / 2, LR, LR]


def test_plateau_follows_the_history() -> None:
    costs = [1.0, 0.9, 0.95, 0.93]
    options = {"schedule": "plateau", "warmup_epochs": 0, "plateau_patience": 1}
    assert rates(costs=costs[:3], **options)[-1] == LR
    assert rates(costs=costs, **options)[-1] == pytest.approx(LR / 10)


@pytest.mark.parametrize(
    ("losses", "patience", "count"),
    [
        ([], 0, 0),
        ([3, 2, 1], 0, 0),
        ([1, 1], 0, 1),  # equal is not better
        ([1, 2, 3, 4], 0, 3),
        ([1, 2, 3, 4], 1, 1),
        ([1, 2, 3, 4, 5], 1, 2),
        ([1, 2, 0.5, 2, 3], 1, 1),
        ([1, 2, 3, 0.5], 2, 0),
        ([math.nan, 1, math.nan, math.nan], 1, 1),
    ],
)
def test_plateaus_are_counted(losses: list[float], patience: int, count: int) -> None:
    assert count_plateaus(losses, patience) == count


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 8),
    st.integers(1, 70),
    st.floats(0, 20),
    st.sampled_from(["cosine", "one_cycle", "constant", "plateau"]),
)
def test_every_rate_is_positive_rises_once_and_falls(
    rows: int, epochs: int, batch: int, warmup: float, kind: str
) -> None:
    made = rates(rows, epochs, batch, schedule=kind, warmup_epochs=warmup)
    assert all(0 < rate <= LR * (1 + 1e-12) for rate in made)
    top = int(np.argmax(made))
    assert (np.diff(made[: top + 1]) > 0).all()
    assert (np.diff(made[top:]) <= 0).all()
    if kind != "one_cycle" or len(made) > 1:
        assert max(made) == pytest.approx(LR)
    assert top <= len(made) // 2  # a long warm-up is cut short
    assert made == rates(rows, epochs, batch, schedule=kind, warmup_epochs=warmup)


# -------------------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize(
    ("table", "by_epoch"),
    [
        ("all", ["all"] * 5),
        (2, [2] * 5),
        ({0: 0, 2: 3, 4: "all"}, [0, 0, 3, 3, "all"]),
        ({3: 1, 1: 5}, [0, 5, 5, 1, 1]),
        ({}, [0] * 5),
    ],
)
def test_trainable_stages_by_epoch(table: Any, by_epoch: list[Any]) -> None:
    train = TrainConfig(trainable_stages=table)
    assert [trainable_stages(train, epoch) for epoch in range(5)] == by_epoch


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({}, False),
        ({"trainable_stages": 0}, True),
        ({"trainable_stages": 1}, False),
        ({"trainable_stages": {0: 0}}, True),
        ({"trainable_stages": {0: 0, 2: 0}}, True),
        ({"trainable_stages": {0: 0, 2: 1}}, False),
        ({"epochs": 0}, True),
    ],
)
def test_body_is_frozen(options: dict[str, Any], frozen: bool) -> None:
    assert body_is_frozen(TrainConfig(**options)) is frozen


@pytest.mark.parametrize(
    ("choice", "pretrained", "frozen"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("frozen", True, True),
        ("frozen", False, True),
        ("batch", True, False),
        ("batch", False, False),
    ],
)
def test_freezes_batch_norm(choice: Any, pretrained: bool, frozen: bool) -> None:
    assert freezes_batch_norm(TrainConfig(batch_norm=choice), pretrained) is frozen


def make(name: str = "test_efficientnet", **options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ModelConfig(name=name, **options), 32, 3)


def statistics(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running_" in name}


def step(model: Classifier) -> set[str]:
    """Makes one step of plain gradient descent; returns the parameters that changed."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    optimizer.zero_grad()
    model(images).logsumexp(1).sum().backward()
    optimizer.step()
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext", "simple_cnn"])
@pytest.mark.parametrize("stages", ["all", 0, 1, 3, 99])
def test_only_the_last_stages_train(name: str, stages: Any) -> None:
    model = make(name)
    set_modes(model, 0, False)  # as if there had been an earlier epoch
    set_modes(model, stages, False)
    groups = model.stages()
    expected = groups if stages == "all" else groups[max(0, len(groups) - stages) :]
    wanted = {f"body.{parameter}" for group in expected for parameter in group}
    trained = {parameter for parameter, value in model.named_parameters() if value.requires_grad}
    assert trained == wanted | {f"head.{parameter}" for parameter, _ in model.head.named_parameters()}
    assert step(model) <= trained
    assert model.head.training
    for path, module in model.body.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.training == (f"body.{path}.weight" in wanted), path


@pytest.mark.parametrize("stages", ["all", 0, 2])
@pytest.mark.parametrize("frozen", [True, False])
def test_running_statistics_move_only_where_they_may(stages: Any, frozen: bool) -> None:
    model = make("test_resnet")
    set_modes(model, stages, frozen)
    before = statistics(model)
    step(model)
    moved = {name for name, value in statistics(model).items() if not torch.equal(value, before[name])}
    assert before
    if frozen or stages == 0:
        assert not moved
    elif stages == "all":
        assert moved == set(before)
    else:
        late = {name for name in before if name.startswith(("body.layer3", "body.layer4"))}
        assert moved == late


def test_frozen_statistics_do_not_freeze_the_affine_weights() -> None:
    model = make("test_resnet")
    set_modes(model, "all", True)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_body_computes_as_in_evaluation() -> None:
    """Otherwise features computed once would differ from what the head sees."""
    model = make("test_vit")
    for module in model.body.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    set_modes(model, 0, False)
    with torch.no_grad():
        seen = model.features(images)
        torch.testing.assert_close(seen, model.eval().features(images), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------- optimising


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "simple_cnn"])
@pytest.mark.parametrize("hidden", [0, 8])
def test_every_weight_is_in_one_group(name: str, hidden: int) -> None:
    model = make(name, hidden=hidden)
    train = TrainConfig(lr=1e-3, head_lr=5e-3, weight_decay=0.3)
    groups = parameter_groups(model, train)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters())
    in_head = {id(parameter) for parameter in model.head.parameters()}
    tokens = {"pos_embed", "cls_token", "reg_token"} if name == "test_vit" else set()
    spared = {id(parameter) for name, parameter in model.body.named_parameters() if name in tokens}
    assert (name == "test_vit") == bool(spared)
    for group in groups:
        for parameter in group["params"]:
            is_decayed = parameter.ndim > 1 and id(parameter) not in spared
            assert group["weight_decay"] == (0.3 if is_decayed else 0.0)
            assert group["scale"] == (pytest.approx(5.0) if id(parameter) in in_head else 1.0)


def test_the_head_learns_at_the_bodys_rate_by_default() -> None:
    assert {group["scale"] for group in parameter_groups(make(), TrainConfig(lr=1e-3))} == {1.0}


def test_layer_decay_slows_each_stage_below_the_head() -> None:
    model = make()
    groups = parameter_groups(model, TrainConfig(layer_decay=0.5))
    scales = {id(parameter): group["scale"] for group in groups for parameter in group["params"]}
    assert sorted(scales) == sorted(id(parameter) for parameter in model.parameters())
    stages = model.stages()
    for depth, names in enumerate(reversed(stages)):
        assert {scales[id(model.body.get_parameter(name))] for name in names} == {0.5**depth}
    assert {scales[id(parameter)] for parameter in model.head.parameters()} == {1.0}
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim > 1}


# ------------------------------------------------------------------------------------------------------ mixing

IMAGES = torch.arange(5 * 3 * 8 * 8, dtype=torch.float32).reshape(5, 3, 8, 8)
TARGETS = torch.eye(5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_mixup_mixes_images_and_targets_in_the_same_shares(dtype: torch.dtype) -> None:
    images = (IMAGES % 256).to(dtype)
    before = images.clone()
    np.random.seed(3)
    mixed, targets = mix(images, TARGETS, TrainConfig(mixup=1.0))
    assert torch.equal(images, before)
    share = float(targets[0, 0])
    assert 0.01 < share < 0.99
    torch.testing.assert_close(mixed[1], before[1].float() * share + before[3].float() * (1 - share))
    torch.testing.assert_close(mixed[2], before[2].float())  # the middle one is mixed with itself
    torch.testing.assert_close(targets, TARGETS * share + TARGETS.flip(0) * (1 - share))


def test_cutmix_replaces_a_box_and_shares_targets_by_its_area() -> None:
    before = IMAGES.clone()
    shares = []
    for seed in range(20):
        np.random.seed(seed)
        mixed, targets = mix(IMAGES, TARGETS, TrainConfig(cutmix=1.0))
        from_other = (mixed[0] == before[4]).all(0)
        assert ((mixed[0] == before[0]).all(0) | from_other).all()
        rows, columns = from_other.any(1).sum(), from_other.any(0).sum()
        assert from_other.sum() == rows * columns  # a box
        assert float(targets[0, 4]) == pytest.approx(float(from_other.float().mean()), abs=1e-6)
        shares.append(float(targets[0, 4]))
    assert torch.equal(IMAGES, before)
    assert len(set(shares)) > 5


def test_with_both_on_each_batch_gets_one_of_them() -> None:
    kinds = set()
    for seed in range(20):
        np.random.seed(seed)
        mixed, _ = mix(IMAGES, TARGETS, TrainConfig(mixup=1.0, cutmix=1.0))
        kinds.add(bool(((mixed[0] == IMAGES[0]) | (mixed[0] == IMAGES[4])).all()))
    assert kinds == {True, False}


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.0, False)])
def test_sgd(momentum: float, nesterov: bool) -> None:
    optimizer = make_optimizer(make(), TrainConfig(optimizer="sgd", momentum=momentum))
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(momentum, nesterov)}


def test_adamw_keeps_the_scales() -> None:
    optimizer = make_optimizer(make(), TrainConfig(lr=1e-3, head_lr=1e-2))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["scale"] for group in optimizer.param_groups] == pytest.approx([1, 1, 10, 10])


def test_the_average_of_the_weights() -> None:
    model = make()
    assert make_average(model, TrainConfig()) is None
    average = make_average(model, TrainConfig(average_epochs=3))
    assert average is not None
    before = model.head[-1].weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            model.head[-1].weight += 1
        average.update_parameters(model)
    torch.testing.assert_close(average.module.head[-1].weight, before + 2)


def test_class_weights() -> None:
    targets = np.array([0, 0, 0, 1, 1, 3])
    assert class_weights(TrainConfig(), targets, 4) is None
    balanced = class_weights(TrainConfig(class_weights="balanced"), targets, 4)
    assert balanced is not None
    torch.testing.assert_close(balanced, torch.tensor([6 / 12, 6 / 8, 6 / 4, 6 / 4]))
    assert float(balanced[torch.from_numpy(np.array([0, 0, 0]))].sum()) == pytest.approx(6 / 4)  # as much as class 3
    own = class_weights(TrainConfig(class_weights=[1, 2.5, 3, 4]), targets, 4)
    assert own is not None
    assert own.dtype == torch.float32
    assert own.tolist() == [1.0, 2.5, 3.0, 4.0]
