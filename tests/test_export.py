"""export.py: other programs get the same predictions from exported files; files that would differ are not written."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from packaging.version import parse
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

import export
import infer
from scenes.competition.task import Labels, Number, Task, class_task, predictions_of
from scenes.config import Config
from scenes.console import UserError
from scenes.data.batches import resize
from scenes.data.decode import decode
from scenes.inference.calibration import Calibration
from scenes.inference.card import activation, model_card
from scenes.model.backbone import Classifier, timm
from scenes.model.export import FIRST_TIMM, export_timm
from scenes.runs import Run

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)

import onnx  # noqa: E402
import onnxruntime  # noqa: E402

from scenes.inference import export as onnx_export  # noqa: E402

needs_timm = pytest.mark.skipif(
    parse(timm.__version__) < parse(FIRST_TIMM), reason=f"timm before {FIRST_TIMM} cannot load what it writes"
)


def share_body(folder: Path) -> None:
    """Gives fold 1 the body of fold 0, as in a linear probe."""
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
        export.main(["runs/tiny", "--to", "onnx", "--int8"])
    return root


@pytest.fixture(scope="module")
def session(exported: Path) -> Any:
    return onnxruntime.InferenceSession(exported / "runs/tiny/tiny.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("form", ["onnx", "hub-folder"])
def test_names_that_do_not_fit_the_classes_are_refused(form: str, exported: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="2 names for 6 outputs"):
        patch.chdir(exported)
        out = str(tmp_path / "out")
        export.main(["runs/tiny", "--to", form, "--out", out, "--set", "data.class_names=[a, b]"])
    assert not list(tmp_path.iterdir())


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
    other = onnx.load(exported / "runs/tiny/tiny.onnx")  # exported from both folds
    monkeypatch.setattr(onnx_export, "make_graph", lambda pipeline, folds: other)
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match="differ from PyTorch's on resized images"):
        export.main(["runs/tiny", "--to", "onnx", "--folds", "0"])
    assert sorted(Path().rglob("*")) == before


def test_int8_is_smaller_and_its_cost_is_measured_on_held_out_rows(exported: Path, session: Any) -> None:
    small = onnxruntime.InferenceSession(exported / "runs/tiny/tiny.int8.onnx", providers=["CPUExecutionProvider"])
    assert small.get_modelmeta().custom_metadata_map == session.get_modelmeta().custom_metadata_map
    measured = json.loads((exported / "runs/tiny/tiny.int8.json").read_text())
    assert measured["mib"]["int8"] < measured["mib"]["float32"]
    names = [f"{row}.jpg" for row in range(12)]
    images = np.stack([decode(exported / "input/SceneImages" / name).pixels for name in names])
    np.testing.assert_allclose(run(small, images), run(session, images), atol=0.2)
    assert measured["n"] == 96 - measured["ranges_from"] == 96 - 24
    scores = measured["scores"]
    assert measured["change"] == pytest.approx(scores["int8"][0] - scores["float32"][0])


def test_a_missing_package_is_named(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install onnx onnxruntime onnxscript"):
        export.main(["runs/tiny", "--to", "onnx"])


@needs_timm
def test_timm_loads_a_fold_with_equal_logits(finished: Path) -> None:
    Path("runs/tiny/hub/fold0").mkdir(parents=True)
    Path("runs/tiny/hub/fold0/mine.txt").touch()
    for form in ("hub-folder", "timm"):
        export.main(["runs/tiny", "--to", form])
    assert Path("runs/tiny/hub/fold0.1/mine.txt").exists()
    assert sorted(path.name for path in Path("runs/tiny/hub").iterdir()) == ["fold0", "fold0.1", "fold1"]
    for fold in ("fold0", "fold1"):
        model = timm.create_model(f"local-dir:runs/tiny/hub/{fold}", pretrained=True).eval()
        state = load_file(f"runs/tiny/hub/{fold}/model.safetensors")
        assert state.keys() == model.state_dict().keys()
        data = timm.data.resolve_model_data_config(model)
        assert (*data["input_size"], data["crop_pct"], data["crop_mode"]) == (3, 32, 32, 1.0, "squash")
        plain = timm.create_model(
            "test_efficientnet",
            pretrained=True,
            num_classes=6,
            pretrained_cfg_overlay={"file": f"runs/tiny/hub/{fold}/model.safetensors", "num_classes": 6},
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
            export_timm(model, config, tmp_path / "out", "# card")
        assert not list(tmp_path.iterdir())
    else:
        export_timm(model, config, tmp_path / "out", "# card")
        assert json.loads((tmp_path / "out/config.json").read_text())["label_names"] == list("abc")


def read_head(card: str) -> dict[str, Any]:
    return YAML(typ="safe").load(card.split("---\n")[1])


def test_the_model_card_has_the_scores_and_the_code_to_load_it(finished: Path) -> None:
    run = Run(Path("runs/tiny"))
    card = model_card(run, run.load_config(["data.class_names=['a|b', '<i>', c, d, e, f]"]), 1)
    metrics = json.loads(run.metrics_file.read_text())
    assert f"{metrics['accuracy']:.4f} ± {metrics['accuracy_se']:.4f}" in card
    assert f"{metrics['per_fold']['1']['value']:.4f}" in card
    assert "| a\\|b | 0 |" in card and "<i>" not in card
    head = read_head(card)
    assert head["library_name"] == "timm" and "license" not in head  # trained from random weights
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    pretrained = model_card(run, run.load_config(["model.weights=hub", "model.name=tf_efficientnet_lite0.in1k"]), 1)
    assert read_head(pretrained)["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("task", "logits", "calibration"),
    [
        (class_task("abc"), [[1.0, 2.0, 0.5]], [0.7]),
        (Labels(["a", "b"], ["a", "b"]), [[1.0, -2.0]], [0.7, 1.3]),
        (Number(["age"], ["age"], 5.0, 2.0, 0.0, 6.0), [[0.2]], []),
    ],
)
def test_the_cards_code_predicts_what_the_run_does(task: Task, logits: list, calibration: list[float]) -> None:
    kind = "labels" if task.kind == "labels" else "classes"
    line = activation(task, {"calibration": {"temperatures": calibration}})
    found = eval(line, {"torch": torch, "model": torch.tensor, "images": logits})
    expected = Calibration(kind, calibration).apply(predictions_of(task, np.array(logits)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
