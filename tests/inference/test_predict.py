"""The prediction path, compared with a loop written by hand."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from scenes.config import Config, ModelConfig
from scenes.console import UserError
from scenes.inference.predict import predict, share_bodies
from scenes.inference.views import PLAIN, VIEWS, View, views_of
from scenes.model.backbone import Classifier

CPU = torch.device("cpu")
SIZE = 32
EVERY_VIEW = list({view.name: view for views in VIEWS.values() for view in views}.values())
UPRIGHT = [view for view in EVERY_VIEW if not view.turns]


class Pictures(list[np.ndarray]):
    """Images that count how often they are read."""

    reads = 0

    def __getitem__(self, place: Any) -> Any:
        self.reads += 1
        return super().__getitem__(place)


def pictures(*shapes: tuple[int, int]) -> Pictures:
    generator = np.random.default_rng(0)
    return Pictures(generator.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes)


IMAGES = pictures((40, 50), (SIZE, SIZE), (20, 24), (64, 33), (48, 48), (36, 36), (32, 60))


def make(seed: int, classes: int = 4, name: str = "test_efficientnet", **options: Any) -> Classifier:
    """A network that predicts something different for each image, so that a mix-up shows."""
    torch.manual_seed(seed)
    return spread(Classifier(ModelConfig(name=name, **options), SIZE, classes))


def spread(model: Classifier) -> Classifier:
    """Reinitialises the head and makes its logits differ as much between images as between classes."""
    seen = torch.from_numpy(np.stack([cv2.resize(image, (SIZE, SIZE)) for image in IMAGES])).permute(0, 3, 1, 2)
    last = model.eval().head[-1]
    with torch.no_grad():
        last.weight.normal_()
        logits = model(seen)
        last.weight /= logits.std(0).mean()
        last.bias -= model(seen).mean(0)
    return model.train()


def run(
    models: list[Classifier], images: Any = IMAGES, rows: Any = None, views: Any = None, **options: Any
) -> np.ndarray:
    rows = np.arange(len(images)) if rows is None else np.array(rows)
    settings = {"batch_size": 3, "workers": 0} | options
    return predict(models, images, rows, views or [PLAIN], SIZE, device=CPU, **settings)


def by_hand(model: Classifier, image: np.ndarray, view: View) -> np.ndarray:
    side = round(SIZE * view.scale)
    shrinks = min(image.shape[:2]) > side
    if image.shape[:2] != (side, side):
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if view.crop:
        top, left = (round(part * (side - SIZE)) for part in view.crop)
        image = image[top : top + SIZE, left : left + SIZE]
    if view.flip:
        image = image[:, ::-1]
    image = np.rot90(image, view.turns)
    mean, std = (np.array(model.body.pretrained_cfg[name]) for name in ("mean", "std"))
    pixels = ((image / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    model.eval()
    with torch.no_grad():
        logits = model.head(model.body(torch.from_numpy(pixels)))[0].numpy().astype(np.float64)
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def test_equals_a_loop_by_hand() -> None:
    models = [make(0), make(1)]
    rows = [4, 0, 0, 6, 3, 2, 1, 5]
    made = run(models, rows=rows, views=EVERY_VIEW)
    assert made.dtype == np.float32
    assert made.shape == (2, len(EVERY_VIEW), len(rows), 4)
    np.testing.assert_allclose(made.sum(-1), 1, atol=1e-5)
    for m, model in enumerate(models):
        for v, view in enumerate(EVERY_VIEW):
            for place, row in enumerate(rows):
                expected = by_hand(model, IMAGES[row], view)
                np.testing.assert_allclose(made[m, v, place], expected, atol=2e-5, err_msg=f"{m} {view.name} {row}")
    # Each axis must matter, otherwise the comparison above proves little.
    for axis in (0, 1, 2):
        assert np.abs(np.diff(made, axis=axis)).max() > 0.05


def test_the_networks_are_put_into_evaluation_mode() -> None:
    model = make(0, dropout=0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    np.testing.assert_array_equal(run([model]), run([model]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    models = [make(0), make(1)]
    views = VIEWS["five_crop"]
    np.testing.assert_allclose(run(models, views=views, batch_size=batch_size), run(models, views=views), atol=1e-5)


def test_workers_change_nothing() -> None:
    models = [make(0)]
    np.testing.assert_array_equal(run(models, views=EVERY_VIEW, workers=2), run(models, views=EVERY_VIEW))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
    ],
    ids=["cuda", "cudnn", "cpu"],
)
def test_out_of_memory_splits_the_batch_and_predicts_the_same(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [make(0), make(1)]
    expected = run(models, views=EVERY_VIEW, batch_size=8)
    features = Classifier.features

    def small_memory(self: Classifier, images: torch.Tensor, limit: int = 3) -> torch.Tensor:
        if len(images) > limit:
            raise error
        return features(self, images)

    monkeypatch.setattr(Classifier, "features", small_memory)
    np.testing.assert_allclose(run(models, views=EVERY_VIEW, batch_size=8), expected, atol=1e-5)
    assert capsys.readouterr().out.count("out of memory") == 2  # into 2, then into 4, and it stays at 4
    monkeypatch.setattr(Classifier, "features", lambda self, images: small_memory(self, images, limit=0))
    with pytest.raises(UserError, match="not even one image"):
        run(models)


def test_every_image_is_read_once() -> None:
    images = pictures((40, 40), (30, 50), (32, 32))
    run([make(0), make(1)], images, views=EVERY_VIEW)
    assert images.reads == 3


def test_bfloat16_gives_float32_probabilities() -> None:
    exact, rounded = run([make(0)]), run([make(0)], precision="bf16")
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(rounded, exact, atol=0.2)
    assert not np.array_equal(rounded, exact)


def test_the_head_is_float32_in_bfloat16_too() -> None:
    """Two classes whose logits differ by less than bfloat16 can resolve: the second one must win."""
    model = make(0, classes=2)
    last = model.head[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([8.0, 8.001]))
    for precision in ("fp32", "bf16"):
        assert (run([model], precision=precision).argmax(-1) == 1).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.zeros(1, 3, SIZE, SIZE)).dtype == torch.float32


def test_a_prediction_that_is_not_finite_is_an_error_with_fold_view_and_image() -> None:
    models, images = [make(0), make(1)], pictures((40, 40), (30, 50), (32, 32))
    models[0].name, models[1].name = "fold0", "fold3"
    with torch.no_grad():
        models[1].head[-1].bias[2] = float("nan")
    with pytest.raises(UserError, match=r"b\.jpg.*fold3.*plain.*1 other"):
        run(models, images, rows=[1, 2], views=VIEWS["hflip"], names=["a.jpg", "b.jpg", "c.jpg"])


# ---------------------------------------------------------------------------------------------------- views


def test_the_mirrored_view_is_the_plain_view_of_the_mirror_image() -> None:
    images = pictures(*[(SIZE, SIZE)] * 5)
    mirrored = Pictures(np.ascontiguousarray(image[:, ::-1]) for image in images)
    plain, hflip = VIEWS["hflip"]
    model = make(0)
    both = run([model], images, views=[plain, hflip])
    np.testing.assert_allclose(both[0, 1], run([model], mirrored, views=[plain])[0, 0], atol=1e-6)
    assert np.abs(both[0, 0] - both[0, 1]).max() > 0.05


def coordinates(side: int) -> torch.Tensor:
    """Canvases whose pixels encode their position: (from the top, from the left, 7)."""
    canvas = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    canvas[..., 0] = torch.arange(side)[:, None]
    canvas[..., 1] = torch.arange(side)
    canvas[..., 2] = 7
    return canvas


@pytest.mark.parametrize(
    ("name", "top", "left"),
    [
        ("centre", 11, 11),
        ("top left", 0, 0),
        ("top right", 0, 22),
        ("bottom left", 22, 0),
        ("bottom right", 22, 22),
    ],
)
def test_five_crop_takes_the_corners_it_names(name: str, top: int, left: int) -> None:
    (view,) = (view for view in VIEWS["five_crop"] if view.name == name)
    assert view.canvas(150) == 172
    seen = view.apply(coordinates(172), 150)
    assert seen.shape == (2, 150, 150, 3)
    assert seen[0, 0, 0].tolist() == [top, left, 7]
    assert seen[1, -1, -1].tolist() == [top + 149, left + 149, 7]


@pytest.mark.parametrize(("size", "large"), [(150, 188), (32, 40), (224, 280)])
def test_multiscale_looks_at_the_whole_image_at_two_sizes(size: int, large: int) -> None:
    assert [view.canvas(size) for view in VIEWS["multiscale"]] == [size, size, large, large]
    plain, flipped = VIEWS["multiscale"][2:]
    canvas = coordinates(40)
    assert torch.equal(plain.apply(canvas, 32), canvas)
    assert flipped.apply(canvas, 32)[0, 5, 0].tolist() == [5, 39, 7]


@pytest.mark.parametrize("view", UPRIGHT, ids=lambda view: view.name)
def test_no_view_turns_a_scene(view: View) -> None:
    seen = view.apply(coordinates(view.canvas(100)), 100)[0].int()
    assert (seen[..., 0].diff(dim=0) == 1).all()  # the sky stays at the top, the columns stay upright
    assert (seen[..., 0].diff(dim=1) == 0).all()
    assert (seen[..., 1].diff(dim=1) == (-1 if view.flip else 1)).all()


def test_the_names_of_views_are_distinct_and_safe_to_join() -> None:
    for views in VIEWS.values():
        names = [view.name for view in views]
        assert len(set(names)) == len(names)
        assert not any("," in name for name in names)
    assert VIEWS["none"] == [PLAIN]
    assert VIEWS["hflip"][0] == VIEWS["multiscale"][0] == PLAIN


def test_all_views_are_the_eight_symmetries_of_the_square() -> None:
    canvas = coordinates(20)
    seen = [view.apply(canvas, 20) for view in VIEWS["all"]]
    assert len({image.numpy().tobytes() for image in seen}) == 8
    square = canvas[0].numpy()
    expected = {np.rot90(way, turns).tobytes() for way in (square, square[:, ::-1]) for turns in range(4)}
    assert {image[0].contiguous().numpy().tobytes() for image in seen} == expected


@pytest.mark.parametrize(("symmetry", "count"), [("none", 1), ("mirror", 2), ("all", 8)])
def test_views_follow_from_the_symmetry(symmetry: str, count: int) -> None:
    config = Config.model_validate({"name": "t", "symmetry": symmetry})
    assert len(views_of(config)) == count
    scales = Config.model_validate({"name": "t", "symmetry": symmetry, "infer": {"tta": "multiscale"}})
    assert any(view.flip for view in views_of(scales)) == (symmetry != "none")
    every = Config.model_validate({"name": "t", "symmetry": symmetry, "infer": {"tta": "all"}})
    assert len(views_of(every)) == count


@pytest.mark.parametrize(("symmetry", "count"), [("none", 1), ("mirror", 2), ("all", 8)])
def test_every_other_view_is_of_the_size_of_training(symmetry: str, count: int) -> None:
    values = {"name": "t", "symmetry": symmetry, "image_size": 40, "infer": {"image_size": 48}}
    views = views_of(Config.model_validate(values))
    assert views[0] == PLAIN
    assert [view.canvas(48) for view in views] == [48, 40] * (count // 2) + [48] * (count % 2)
    assert len({view.name for view in views}) == count
    images = torch.zeros(1, 40, 40, 3)
    assert all(view.apply(images, 48).shape == images.shape for view in views if view.canvas(48) == 40)


# ---------------------------------------------------------------------------------------------- shared bodies


def heads(count: int) -> list[Classifier]:
    """Networks with equal bodies and different heads."""
    models = [make(0) for _ in range(count)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        spread(model)
    return models


def test_a_shared_body_gives_what_copies_give() -> None:
    apart, shared = heads(3), heads(3)
    share_bodies(shared)
    assert len({id(model.body) for model in shared}) == 1
    calls: list[int] = []
    shared[0].body.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    together = run(shared, views=VIEWS["hflip"])
    np.testing.assert_allclose(together, run(apart, views=VIEWS["hflip"]), atol=1e-6)
    assert sum(calls) == 2 * len(IMAGES)  # once per view, not once per model
    assert np.abs(together[0] - together[1]).max() > 0.05


def test_bodies_that_differ_stay_apart() -> None:
    models = [make(0), make(1), make(0), make(0)]
    with torch.no_grad():
        models[3].body.bn1.running_mean += 1e-3
    expected = run(models)
    share_bodies(models)
    assert models[2].body is models[0].body
    assert len({id(model.body) for model in models}) == 3
    np.testing.assert_allclose(run(models), expected, atol=1e-6)
