"""Reads, validates, writes and compares config files; every mistake is reported with its line."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scenes import plain_yaml
from scenes.config import Config, Section
from scenes.console import Problem, UserError, raise_problems

RECIPES = ("near", "far")

# A run may resume with different values of these: they do not change what it computes (train.accumulate: apart from
# rounding, which rows share a random draw, and the statistics of trainable batch norms).
# The training data may move, because folds.csv detects whether the data itself has changed.
FREE_KEYS = (
    "name",
    "data.root",
    "data.train_csv",
    "data.test_csv",
    "data.sample_submission",
    "data.image_dir",
    "data.test_image_dir",
    "data.class_names",
    "data.submission_labels",
    "data.cache",
    "data.sample",
    "train.accumulate",
    "train.checkpoint_minutes",
    "train.time_budget_minutes",
    "train.wandb",
    "loader.workers",
    "infer.batch_size",
    "infer.on_bad_image",
    "selected_on",
    "report",
    "submission",
)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads an experiment file and applies `--set` pairs, without the competition's description.

    Args:
        path: A YAML file that holds only what differs from the defaults.
        overrides: ``key=value`` strings, the value in YAML, e.g. ``train.epochs=5``.

    Raises:
        UserError: If a key is unknown or a value invalid; lists every mistake.
    """
    values, places = read_values(path, overrides)
    return validate(values, str(path), places)


def read_values(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads an experiment file and `--set` pairs without validating them; arguments as for `load_config`.

    Returns:
        The nested values, and where each dotted key comes from.

    Raises:
        UserError: If the file cannot be read or a pair is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config; available: {_neighbours(path)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a YAML file ({error}); save it as UTF-8") from None
    values, lines = plain_yaml.parse(text, str(path))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    values.setdefault("name", path.stem)
    places = {key: f"{path}, line {line}" for key, line in lines.items()}
    has_recipes = any(values.get(recipe) for recipe in RECIPES)
    for pair in overrides:
        key = _apply(values, pair)
        if key == "recipe" and not has_recipes and values[key] != "auto":
            raise UserError(f"--set {pair}: {path} has no recipes near and far to choose from; leave it out")
        for recipe in RECIPES:
            if isinstance(settings := values.get(recipe), dict) and key != recipe:
                values[recipe] = {other: value for other, value in settings.items() if not _overlap(key, str(other))}
        below = [place for place in places if place.startswith(f"{key}.")]
        for place in [key, *below]:
            places[place] = f"--set {pair}"
    return values, places


def validate(values: Mapping[str, Any], source: str, places: Mapping[str, str] | None = None) -> Config:
    """Turns plain values into a validated config.

    Args:
        values: The nested values.
        source: Where they come from, for messages.
        places: Where exactly each dotted key comes from, for messages.

    Raises:
        UserError: Listing every mistake with its place and the nearest valid name.
    """
    try:
        config = Config.model_validate(values)
        recipes_of(config, places)  # validates them too
        return config
    except ValidationError as error:
        problems: dict[str, list[Problem]] = {}
        for detail in error.errors():
            key = _known_part(detail["loc"])
            where = _place(key, places or {}) or source
            if detail["type"] == "extra_forbidden":
                problem = Problem(where, f"unknown key {key!r}", _nearest(key))
            else:
                message = detail["msg"].removeprefix("Value error, ")
                is_whole = not key or isinstance(detail["input"], dict)
                given = "" if is_whole else f" (given: {_short(detail['input'])})"
                problem = Problem(where, f"{key}: {message}{given}" if key else message)
            # pydantic reports each member of a union; the reader wants one entry per key.
            problems.setdefault(key, []).append(problem)
    merged = [
        same[0] if len(same) == 1 else same[0]._replace(what="; or ".join(dict.fromkeys(p.what for p in same)))
        for same in problems.values()
    ]
    raise_problems(merged, "The config cannot be used")
    raise AssertionError


def with_recipe(config: Config, recipe: str, places: Mapping[str, str] | None = None) -> Config:
    """Returns the config with one of its two recipes applied and both removed.

    Args:
        config: The config.
        recipe: ``near`` or ``far``.
        places: Where each dotted key comes from, for messages.

    Raises:
        UserError: If the recipe has a key that no recipe may change, or an invalid value.
    """
    values = config.model_dump(mode="json")
    settings, allowed = values[recipe], [key for key in valid_keys() if _is_recipe_key(key)]
    problems = []
    for key in settings:
        if key not in allowed:
            where = _place(f"{recipe}.{key}", places or {}) or f"{config.name}: {recipe}"
            near = difflib.get_close_matches(key, allowed, 1, 0.6)
            remedy = "a recipe may set augment, image sizes and dotted train keys: `train.lr: 1e-3`"
            if near and not isinstance(settings[key], dict):
                remedy = f"did you mean {near[0]!r}?"
            problems.append(Problem(where, f"{recipe}: {key!r} is not a setting that a recipe may change", remedy))
    raise_problems(problems, "The config cannot be used")
    values |= {"recipe": recipe, "near": {}, "far": {}}
    for key, value in settings.items():
        section, _, last = key.rpartition(".")
        (values[section] if section else values)[last] = value
    inner = {
        key.removeprefix(f"{recipe}."): where for key, where in (places or {}).items() if key.startswith(f"{recipe}.")
    }
    return validate(values, f"{config.name}: {recipe}", inner)


def recipes_of(config: Config, places: Mapping[str, str] | None = None) -> list[Config]:
    """Lists the configs that this one may become: itself, or one per recipe; arguments as for `with_recipe`."""
    return [with_recipe(config, recipe, places) for recipe in RECIPES] if config.near or config.far else [config]


def _is_recipe_key(key: str) -> bool:
    """Whether a recipe may set a key; batches and the time budget are divided up before the recipe is chosen."""
    if key in ("train.batch_size", "train.time_budget_minutes"):
        return False
    return key in ("augment", "image_size", "infer.image_size") or key.startswith("train.")


def dump(config: Config) -> str:
    """Writes a resolved config as YAML that `load_config` reads back."""
    return plain_yaml.dump(config.model_dump(mode="json"))


def portable(config: Config) -> Config:
    """Returns the config without this machine's locations of the data and its cache."""
    here = {"sample": False, "root": Path("input"), "cache": Path(".cache")}
    return config.model_copy(update={"data": config.data.model_copy(update=here)})


def differences(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """Lists (key, old value, new value) for each setting that differs and can change a result."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [(key, before[key], after[key]) for key in after if key not in FREE_KEYS and before[key] != after[key]]


def _overlap(one: str, other: str) -> bool:
    """Whether two dotted keys are the same, or one contains the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _apply(values: dict[str, Any], pair: str) -> str:
    """Merges one ``a.b=value`` into the nested values; returns its key."""
    key, equals, text = pair.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set takes key=value pairs, e.g. --set train.epochs=5; got {pair!r}")
    *sections, last = key.strip().split(".")
    target = values
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise UserError(f"--set {pair}: {section} is the value {_short(target)}, not a section")
    is_sign = (len(text) == 1 and text.isascii() and not text.isalnum() and text != "~") or (text and not text.strip())
    # A separator such as `|` is taken literally, not as YAML syntax.
    target[last] = text if is_sign else plain_yaml.parse(text, f"--set {pair}").values
    return key.strip()


def _place(key: str, places: Mapping[str, str]) -> str:
    """Where a key comes from; failing that, a key below it, or its section."""
    below = [place for known, place in places.items() if known.startswith(f"{key}.")]
    return places.get(key) or next(iter(below), "") or places.get(key.rpartition(".")[0], "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens sections (not free-form values) to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if not prefix and isinstance(value, dict):
            flat |= _flat(value, f"{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _known_part(location: tuple[int | str, ...]) -> str:
    """Strips what pydantic appends to a location inside a union, e.g. the member's type."""
    parts = [str(part) for part in location]
    depth = 2 if parts and parts[0] in Config.model_fields and _section(parts[0]) else 1
    return ".".join(parts[:depth])


def _section(name: str) -> type[Section] | None:
    annotation = Config.model_fields[name].annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def valid_keys() -> list[str]:
    """Lists every dotted key a config may hold."""
    keys = []
    for name in Config.model_fields:
        section = _section(name)
        keys += [f"{name}.{field}" for field in section.model_fields] if section else [name]
    return keys


def _nearest(key: str) -> str:
    keys = valid_keys()
    if key in keys:  # valid, but dotted at the top of the file
        section, _, field = key.partition(".")
        return f"in a file, write it on two lines: `{section}:` and, indented, `{field}: …`"
    short = {k.rpartition(".")[2]: k for k in keys}
    match = difflib.get_close_matches(key, keys, 1, 0.6) or [
        short[name] for name in difflib.get_close_matches(key.rpartition(".")[2], list(short), 1, 0.6)
    ]
    return f"did you mean {match[0]!r}?" if match else "every key with its default: src/scenes/config.py"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _neighbours(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("configs")
    return ", ".join(str(file) for file in sorted(folder.glob("*.yaml"))) or "none in that folder"
