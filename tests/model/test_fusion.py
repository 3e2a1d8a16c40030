"""Networks predict the same with fused batch norms, and the norms are gone."""

import pytest
import torch
from torch import nn

from scenes.config import ModelConfig
from scenes.inference.models import fuse_bodies
from scenes.model.backbone import Classifier, create_body
from scenes.model.fusion import fuse_batch_norms, fused


def with_statistics(body: nn.Module) -> nn.Module:
    """The body with nontrivial batch norms, as if trained."""
    generator = torch.Generator().manual_seed(1)
    for norm in (module for module in body.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.running_mean, norm.bias):
            tensor.data += torch.rand(tensor.shape, generator=generator) - 0.5
        for tensor in (norm.running_var, norm.weight):
            tensor.data *= 0.5 + torch.rand(tensor.shape, generator=generator)
    return body.eval()


def norms(body: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in body.modules())


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "simple_cnn"])
def test_features_stay_and_norms_go(name: str) -> None:
    body = with_statistics(create_body(ModelConfig(name=name, weights="none"), 64))
    before = norms(body)
    state = {key: value.clone() for key, value in body.state_dict().items()}
    fused = fuse_batch_norms(body, 64)
    images = torch.rand(4, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(fused(images), body(images), rtol=1e-3, atol=1e-4)
    assert (norms(body), norms(fused)) == (before, 0)
    assert before > 0
    assert all(torch.equal(value, state[key]) for key, value in body.state_dict().items())


class ReadTwice(nn.Module):
    """A convolution whose output is read by a norm and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = self.convolution(images)
        return (seen + self.norm(seen)).mean((2, 3))


def test_a_body_that_fusing_would_change_stays_as_it_is() -> None:
    body = with_statistics(ReadTwice())
    assert fuse_batch_norms(body, 16) is body


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_nfnet"])
def test_a_body_without_batch_norm_stays_as_it_is(name: str) -> None:
    body = create_body(ModelConfig(name=name, weights="none"), 64).eval()
    assert fuse_batch_norms(body, 64) is body


def test_a_body_that_folds_share_stays_shared() -> None:
    config = ModelConfig(name="test_efficientnet", weights="none")
    models = [Classifier(config, 64, 3).eval() for _ in range(3)]
    models[2].body = models[0].body
    fuse_bodies(models, 64)
    assert models[0].body is models[2].body is not models[1].body
    assert [norms(model.body) for model in models] == [0, 0, 0]


def test_it_draws_no_random_numbers() -> None:
    body = create_body(ModelConfig(name="test_efficientnet", weights="none"), 64).eval()
    state = torch.get_rng_state()
    fuse_batch_norms(body, 64)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_predicts_with_fused_norms_for_a_while() -> None:
    model = Classifier(ModelConfig(name="test_resnet", weights="none"), 64, 3)
    body = with_statistics(model.body)
    images = torch.rand(4, 3, 64, 64) * 255
    with torch.no_grad():
        expected = model.eval()(images)
        with pytest.raises(KeyboardInterrupt), fused(model, 64):
            assert norms(model) == 0
            torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-4)
            raise KeyboardInterrupt
    assert model.body is body
