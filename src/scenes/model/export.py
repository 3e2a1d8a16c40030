"""Exports a trained network as a folder that timm loads without this project."""

import filecmp
import tempfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from scenes.config import Config
from scenes.console import UserError, say
from scenes.files import check_folder, keep_old, make_folder
from scenes.model.backbone import Classifier, timm

TOLERANCE = 1e-5
FIRST_TIMM = "1.0.26"  # before it, timm opens a folder's safetensors file as a pickle


def export_timm(model: Classifier, config: Config, folder: Path, card: str) -> None:
    """Writes model.safetensors, config.json and README.md, after checking that timm loads them with the same logits.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads them; `timm.data.resolve_model_data_config` and
    `create_transform` then prepare images as this project does: the whole image, resized to a square.

    Args:
        model: On the CPU.
        config: The run's config.
        folder: The output folder; an existing one with different content is kept under a number.
        card: The text of README.md.

    Raises:
        UserError: If timm has no such network; nothing is written then.
    """
    check_folder(folder)
    target, arguments = _timm_model(model, config)
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        part = Path(scratch, folder.name)
        about = {"label_names": list(model.task.names)}
        try:
            timm.models.save_for_hf(target, part, model_config=about, model_args=arguments, safe_serialization=True)
            difference = _compare(model, part, config.predict_size)
            (part / "README.md").write_bytes(card.encode())
        except (RuntimeError, UnpicklingError) as error:
            raise UserError(
                f"--to hub-folder: timm {timm.__version__} cannot load what it writes ({error}); "
                f"use timm {FIRST_TIMM} or newer, or --to onnx"
            ) from None
        if not difference <= TOLERANCE:
            raise UserError(
                f"{config.model.name}: loaded by timm {timm.__version__}, its logits differ by {difference:.2g}, more "
                f"than {TOLERANCE:g}; nothing was written. Use --to onnx"
            )
        files = sorted(file.name for file in part.iterdir())
        if filecmp.cmpfiles(part, folder, files, shallow=False)[0] != files:
            if folder.exists():
                say(f"{folder} had different content; it is now {keep_old(folder)}")
            part.replace(folder)
    say(f"wrote {folder}/ (logits differ by at most {difference:.0e})")
    say(f"  timm.create_model('local-dir:{folder}', pretrained=True)")


def _timm_model(model: Classifier, config: Config) -> tuple[nn.Module, dict[str, Any]]:
    """Creates timm's own network with these weights; also returns its arguments besides the name.

    Raises:
        UserError: If timm's network has other layers.
    """
    name, size = config.model.name, config.predict_size
    if name == "simple_cnn" or config.model.hidden:
        own = "simple_cnn" if name == "simple_cnn" else f"model.hidden: {config.model.hidden}"
        raise UserError(f"--to hub-folder: timm has no such network ({own}); use --to onnx")
    architecture = name.partition(".")[0]
    arguments: dict[str, Any] = {"global_pool": config.model.pool} if config.model.pool else {}
    known = timm.get_pretrained_cfg(architecture)
    if known and known.fixed_input_size:
        arguments["img_size"] = config.image_size
    target = timm.create_model(architecture, num_classes=model.task.outputs, **arguments)
    classifier, linear, expected = target.pretrained_cfg["classifier"], model.head[-1], target.state_dict()
    state = {**model.body.state_dict(), f"{classifier}.weight": linear.weight, f"{classifier}.bias": linear.bias}
    try:  # a classifier may be a 1 × 1 convolution
        target.load_state_dict({key: value.detach().reshape(expected[key].shape) for key, value in state.items()})
    except (KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"--to hub-folder: timm's {name} has other layers ({reason}); use --to onnx") from None
    target.pretrained_cfg = target.pretrained_cfg | {
        "tag": config.name,
        "num_classes": model.task.outputs,
        "input_size": (3, size, size),
        "test_input_size": None,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "test_crop_pct": None,
        "crop_mode": "squash",
        "mean": tuple((model.mean.flatten() / 255).tolist()),
        "std": tuple((model.std.flatten() / 255).tolist()),
    }
    return target, arguments


def _compare(model: Classifier, folder: Path, size: int) -> float:
    """The largest difference between the logits of both on random images."""
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=generator)
    mean, std = (torch.tensor(loaded.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        return float((loaded((images / 255 - mean) / std) - model.eval()(images)).abs().max())
