"""uint8 images in, logits out: normalisation, the head, the stages, and names that do not exist."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scenes.config import ModelConfig
from scenes.console import UserError
from scenes.model.backbone import Classifier, create_body, has_pretrained, parameter_count

SIZE = 32


def make(name: str, size: int = SIZE, classes: int = 4, **options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ModelConfig(name=name, **options), size, classes).eval()


def images(count: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext", "test_vit", "simple_cnn"])
def test_bytes_in_logits_out(name: str) -> None:
    model = make(name)
    with torch.no_grad():
        logits = model(images())
    assert logits.shape == (3, 4)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("tf_efficientnet_lite0.in1k", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("resnet10t.c3_in1k", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("simple_cnn", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    ],
)
def test_images_are_normalised_as_the_weights_expect(
    name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    model = make(name)
    seen: list[torch.Tensor] = []
    model.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images())
    channels = images().numpy().transpose(0, 2, 3, 1) / 255.0
    by_hand = ((channels - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(seen[0].numpy(), by_hand, atol=2e-6)
    assert {"mean", "std"} <= set(model.state_dict())  # weights are useless without them


def test_normalising_needs_no_contiguous_channels_first() -> None:
    model = make("test_efficientnet")
    last = images().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(model(last), model(images()))


def test_the_head() -> None:
    width = 256
    linear = make("test_efficientnet")
    assert [type(layer) for layer in linear.head] == [nn.Dropout, nn.Linear]
    assert linear.head[-1].weight.shape == (4, width)
    hidden = make("test_efficientnet", hidden=7, dropout=0.3)
    assert [type(layer) for layer in hidden.head] == [nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [layer.p for layer in hidden.head if isinstance(layer, nn.Dropout)] == [0.3, 0.3]
    assert hidden.head[1].weight.shape == (7, width)
    assert hidden.head[-1].weight.shape == (4, 7)
    with torch.no_grad():
        torch.testing.assert_close(hidden(images()), hidden.head(hidden.features(images())))


@pytest.mark.parametrize(("pool", "reduce"), [("avg", torch.mean), ("max", torch.amax)])
def test_pools(pool: str, reduce: Any) -> None:
    model = make("test_resnet", pool=pool, size=64)
    with torch.no_grad():
        body_input = (images(size=64).float() - model.mean) / model.std
        by_hand = reduce(model.body.forward_features(body_input), (2, 3))
        torch.testing.assert_close(model.features(images(size=64)), by_hand)


def test_vgg_loses_its_two_wide_layers() -> None:
    model = make("vgg11")
    assert parameter_count(model.body) == 9_220_480  # its eight convolutions
    assert model.head[-1].in_features == 512
    assert not any("pre_logits" in name for name in model.state_dict())
    assert len(model.stages()) == 8


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("test_efficientnet", 6),
        ("test_resnet", 5),
        ("test_convnext", 5),  # its last norm is not a stage
        ("test_vit", 7),
        ("swin_tiny_patch4_window7_224", 5),
        ("simple_cnn", 5),
    ],
)
def test_stages_hold_every_weight_once_input_first(name: str, stages: int) -> None:
    body = make(name, 224 if name.startswith("swin") else SIZE)
    groups = body.stages()
    names = [parameter for parameter, _ in body.body.named_parameters()]
    assert len(groups) == stages
    assert sorted(parameter for group in groups for parameter in group) == sorted(names)
    assert names[0] in groups[0]
    # Each stage contains layers that learn, and stages are in the order of computation.
    assert all(any(body.body.get_parameter(name).ndim > 1 for name in group) for group in groups)
    first_uses = [min(names.index(parameter) for parameter in group) for group in groups]
    assert first_uses == sorted(first_uses)


def test_a_model_whose_stages_timm_does_not_know() -> None:
    with pytest.raises(UserError, match=r"caformer_s18.*trainable_stages to all or 0.*layer_decay"):
        make("caformer_s18").stages()


def test_a_transformer_is_made_for_the_image_size() -> None:
    assert make("test_vit", 48).body.pos_embed.shape[1] == 9 + 1
    assert make("test_vit", 32).body.pos_embed.shape[1] == 4 + 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tf_efficientnet_lite9", "no model 'tf_efficientnet_lite9'.*tf_efficientnet_lite"),
        ("simplecnn", "no model 'simplecnn'.*simple_cnn"),
        ("resnet10t.c3_in1", "no model 'resnet10t.c3_in1'.*resnet10t.c3_in1k"),
        ("resnet10t.zzz", "no model 'resnet10t.zzz'.*resnet10t.c3_in1k"),
        ("hf-hub:timm/resnet10t", "no model 'hf-hub"),
        ("", "no model ''"),
        ("?", "no model.*lists them"),
    ],
)
def test_a_wrong_name_is_refused_with_near_ones(name: str, says: str) -> None:
    with pytest.raises(UserError, match=rf"^model.name: .*{says}"):
        create_body(ModelConfig(name=name), SIZE)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 50), ("inception_v3", 16)])
def test_a_size_the_model_cannot_take_is_refused(name: str, size: int) -> None:
    with pytest.raises(UserError, match=rf"image_size.*{size}"):
        make(name, size)


def test_simple_cnn_refuses_a_pool_it_would_ignore() -> None:
    with pytest.raises(UserError, match=r"model.pool: max"):
        make("simple_cnn", pool="max")


def test_which_models_have_pretrained_weights() -> None:
    assert has_pretrained("resnet10t")
    assert has_pretrained("tf_efficientnet_lite0.in1k")
    assert not has_pretrained("simple_cnn")
    assert not has_pretrained("efficientnet_b6")


def test_drop_path_reaches_the_body() -> None:
    drops = [m for m in make("test_efficientnet", drop_path=0.3).body.modules() if type(m).__name__ == "DropPath"]
    assert max(module.drop_prob for module in drops) > 0
    with pytest.raises(UserError, match="simple_cnn has no paths"):
        make("simple_cnn", drop_path=0.3)
