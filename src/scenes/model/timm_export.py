"""A trained network as a folder that timm itself loads, without this project."""

import filecmp
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from scenes.config import Config
from scenes.console import UserError, say
from scenes.files import check_folder, keep_old, make_folder, write_atomic, write_text
from scenes.model.backbone import Classifier, timm

TOLERANCE = 1e-5


def export_timm(model: Classifier, classes: Sequence[str], config: Config, folder: Path) -> None:
    """Writes model.safetensors and config.json, after comparing the logits with what timm makes of them.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads them; `timm.data.resolve_model_data_config` and
    `create_transform` then prepare images as they are here: the whole picture, squeezed to a square.

    Args:
        model: On the CPU.
        classes: What its outputs stand for.
        config: The run's config.
        folder: Where to; a folder there with other content is kept under a number.

    Raises:
        UserError: If timm has no form for the network; nothing is written then.
    """
    check_folder(folder)
    arguments = _arguments(config)
    state, target = _as_timm(model, len(classes), config, arguments)
    content = _describe(model, target, classes, config, arguments)
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        part = Path(scratch, folder.name)
        # timm asks for the format; with one entry the bytes are always the same.
        write_atomic(part / "model.safetensors", lambda path: save_file(state, path, {"format": "pt"}))
        write_text(part / "config.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        difference = _compare(model, part, config.predict_size)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{config.model.name}: loaded by timm, its logits differ by {difference:.2g} (at most {TOLERANCE:g}); "
                "nothing was written. Use --to onnx"
            )
        files = sorted(file.name for file in part.iterdir())
        if filecmp.cmpfiles(part, folder, files, shallow=False)[0] != files:
            if folder.exists():
                say(f"{folder} was there with other content; it is now {keep_old(folder)}")
            part.replace(folder)
    say(
        f"wrote {folder}/ (logits as here within {difference:.1e}): timm.create_model('local-dir:{folder}', "
        "pretrained=True)"
    )


def _arguments(config: Config) -> dict[str, Any]:
    """What timm needs beside the name to make the network, as `create_body` gives it."""
    arguments: dict[str, Any] = {"global_pool": config.model.pool} if config.model.pool else {}
    pretrained = timm.get_pretrained_cfg(config.model.name.partition(".")[0])
    if pretrained and pretrained.fixed_input_size:
        arguments["img_size"] = config.image_size
    return arguments


def _as_timm(
    model: Classifier, classes: int, config: Config, arguments: dict[str, Any]
) -> tuple[dict[str, Tensor], torch.nn.Module]:
    """Gives the weights timm's names; also the network, empty, that they are for.

    Raises:
        UserError: If a weight has no place there, or a place no weight.
    """
    name = config.model.name
    if name == "simple_cnn" or config.model.hidden:
        own = "simple_cnn is not timm's" if name == "simple_cnn" else f"model.hidden: {config.model.hidden}"
        raise UserError(f"--to timm: timm has no form for this network ({own}); use --to onnx")
    target = timm.create_model(name.partition(".")[0], num_classes=classes, **arguments)
    expected = target.state_dict()
    classifier = target.pretrained_cfg.get("classifier")
    linear = model.head[-1]
    state = {**model.body.state_dict(), f"{classifier}.weight": linear.weight, f"{classifier}.bias": linear.bias}
    differing = sorted(
        {*state}.symmetric_difference(expected)
        | {key for key in state if key in expected and state[key].numel() != expected[key].numel()}
    )
    if differing:
        raise UserError(
            f"--to timm: {name} has other layers there than here ({len(differing)} weights, first: {differing[0]}); "
            "use --to onnx"
        )
    # A copy each: safetensors refuses weights that share memory, and a classifier may be a 1 × 1 convolution.
    return {
        key: value.detach().reshape(expected[key].shape).clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
    }, target


def _describe(
    model: Classifier, target: torch.nn.Module, classes: Sequence[str], config: Config, arguments: dict[str, Any]
) -> dict[str, Any]:
    """The content of config.json."""
    known = target.pretrained_cfg
    return {
        "architecture": config.model.name.partition(".")[0],
        "num_classes": len(classes),
        "num_features": target.num_features,
        "label_names": list(config.data.class_names or classes),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": config.name,
            "input_size": [3, config.predict_size, config.predict_size],
            "fixed_input_size": bool(known.get("fixed_input_size")),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": (model.mean.flatten() / 255).tolist(),
            "std": (model.std.flatten() / 255).tolist(),
            "num_classes": len(classes),
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def _compare(model: Classifier, folder: Path, size: int) -> float:
    """The largest difference between the logits of both on random images."""
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=generator)
    mean, std = (torch.tensor(loaded.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        return float((loaded((images / 255 - mean) / std) - model.eval()(images)).abs().max())
