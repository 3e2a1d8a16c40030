"""export.py: what other programs load says the same as this one, and what would not is not written."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from packaging.version import parse
from safetensors.torch import load_file, save_file

import export
import infer
from scenes.competition.task import class_task
from scenes.config import Config
from scenes.console import UserError
from scenes.data.batches import resize
from scenes.data.decode import decode
from scenes.model.backbone import Classifier, timm
from scenes.model.export import FIRST_TIMM, export_timm

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)

import onnxruntime  # noqa: E402

from scenes.inference import export as onnx_export  # noqa: E402

needs_timm = pytest.mark.skipif(
    parse(timm.__version__) < parse(FIRST_TIMM), reason=f"timm before {FIRST_TIMM} cannot load what it writes"
)


def share_body(folder: Path) -> None:
    """Gives fold 1 the body of fold 0, as a linear probe's folds have it."""
    path = folder / "fold1/weights.safetensors"
    zero, one = load_file(folder / "fold0/weights.safetensors"), load_file(path)
    metadata = {"scenes": json.dumps({"format": 1, "classes": list("012345"), "run": "tiny"})}
    save_file({name: one[name] if name.startswith("head") else zero[name] for name in one}, path, metadata)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """A folder with a run whose folds share a body, exported, and infer.py's probabilities."""
    root = tmp_path_factory.mktemp("exported") / "root"
    shutil.copytree(trained, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(onnx_export, "CHECKED", 12)
        share_body(Path("runs/tiny"))
        infer.main([])
        Path("runs/tiny/tiny.onnx").write_bytes(b"mine")
        export.main(["runs/tiny", "--to", "onnx"])
    return root


@pytest.fixture(scope="module")
def session(exported: Path) -> Any:
    return onnxruntime.InferenceSession(exported / "runs/tiny/tiny.onnx", providers=["CPUExecutionProvider"])


def run(session: Any, images: np.ndarray) -> np.ndarray:
    return session.run(["probabilities"], {"images": images})[0]


def test_onnx_gives_infers_probabilities(exported: Path, session: Any) -> None:
    expected = pd.read_csv(exported / "submissions/tiny_probabilities.csv", dtype={"image_name": str})
    images = np.stack([decode(exported / "input/SceneImages" / name).pixels for name in expected["image_name"]])
    found = run(session, images)
    assert found.shape == (len(images), 6)
    np.testing.assert_allclose(found, expected.iloc[:, 1:].to_numpy(), atol=0.01)
    small = np.stack([resize(image, 32) for image in images])
    np.testing.assert_allclose(run(session, small), expected.iloc[:, 1:].to_numpy(), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (3, 7, 90, 3), (2, 33, 1, 3), (1, 200, 300, 3)])
def test_onnx_takes_any_number_and_size(shape: tuple[int, ...], session: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = run(session, images)
    assert found.shape == (shape[0], 6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found, np.concatenate([run(session, image[None]) for image in images]), atol=1e-5)


def test_onnx_says_what_it_is_and_holds_a_shared_body_once(exported: Path, session: Any) -> None:
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list("012345")
    assert [metadata[name] for name in ("run", "folds", "image_size")] == ["tiny", "fold0,fold1", "32"]
    assert metadata["views"].startswith("plain")
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape[3]) == ("images", "tensor(uint8)", 3)
    parameters = sum(tensor.nbytes for tensor in load_file(exported / "runs/tiny/fold0/weights.safetensors").values())
    size = (exported / "runs/tiny/tiny.onnx").stat().st_size
    assert size < 1.5 * parameters + 200_000
    assert (exported / "runs/tiny/tiny.1.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("height", [1, 20, 31, 32, 33, 48, 64, 100])
def test_the_graphs_resizing_is_within_a_level_of_ours(height: int) -> None:
    for width in (1, 20, 32, 33, 64, 90):
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        found = onnx_export.fit(torch.from_numpy(image)[None], 32)[0].numpy()
        assert np.abs(found - resize(image, 32)).max() <= 1
        assert (height, width) != (32, 32) or (found == image).all()


def test_a_graph_that_says_something_else_is_refused_and_not_left_behind(
    exported: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = exported / "runs/tiny/tiny.onnx"  # of both folds
    monkeypatch.setattr(onnx_export, "_save", lambda pipeline, path, metadata: shutil.copy(other, path))
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match="differ from PyTorch's on images resized"):
        export.main(["runs/tiny", "--to", "onnx", "--folds", "0"])
    assert sorted(Path().rglob("*")) == before


def test_a_missing_package_is_named(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install onnx onnxruntime onnxscript"):
        export.main(["runs/tiny", "--to", "onnx"])


@needs_timm
def test_timm_loads_a_fold_with_equal_logits(finished: Path) -> None:
    Path("runs/tiny/timm/fold0").mkdir(parents=True)
    Path("runs/tiny/timm/fold0/mine.txt").touch()
    for _ in range(2):
        export.main(["runs/tiny", "--to", "timm"])
    assert Path("runs/tiny/timm/fold0.1/mine.txt").exists()
    assert sorted(path.name for path in Path("runs/tiny/timm").iterdir()) == ["fold0", "fold0.1", "fold1"]
    for fold in ("fold0", "fold1"):
        model = timm.create_model(f"local-dir:runs/tiny/timm/{fold}", pretrained=True).eval()
        state = load_file(f"runs/tiny/timm/{fold}/model.safetensors")
        assert state.keys() == model.state_dict().keys()
        data = timm.data.resolve_model_data_config(model)
        assert (*data["input_size"], data["crop_pct"], data["crop_mode"]) == (3, 32, 32, 1.0, "squash")
        plain = timm.create_model(
            "test_efficientnet",
            pretrained=True,
            num_classes=6,
            pretrained_cfg_overlay={"file": f"runs/tiny/timm/{fold}/model.safetensors", "num_classes": 6},
        ).eval()
        ours = Classifier(Config(name="x", model={"name": "test_efficientnet"}).model, 32, 6).eval()
        ours.load_state_dict(load_file(f"runs/tiny/{fold}/weights.safetensors"))
        images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            seen = (images - ours.mean) / ours.std
            torch.testing.assert_close(model(seen), ours(images), atol=1e-5, rtol=0)
            torch.testing.assert_close(plain(seen), ours(images), atol=1e-5, rtol=0)


@needs_timm
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "simple_cnn"}, "simple_cnn"),
        ({"name": "test_efficientnet", "hidden": 8}, "model.hidden: 8"),
        ({"name": "test_efficientnet", "pool": "max"}, None),
        ({"name": "test_vit"}, None),
        ({"name": "test_convnext"}, None),
    ],
)
def test_each_kind_of_network_is_written_or_refused(
    options: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    config = Config(name="x", image_size=64, model=options, train={"linear_probe": False})
    model = Classifier(config.model, 64, class_task("abc")).eval()
    if message:
        with pytest.raises(UserError, match=message):
            export_timm(model, config, tmp_path / "out")
        assert not list(tmp_path.iterdir())
    else:
        export_timm(model, config, tmp_path / "out")
        assert json.loads((tmp_path / "out/config.json").read_text())["label_names"] == list("abc")
