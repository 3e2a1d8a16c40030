"""competition.yaml: describes a competition, next to its data; every experiment's config overrides it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scenes import plain_yaml
from scenes.config import DataConfig
from scenes.console import Problem, UserError, raise_problems

FILE = "competition.yaml"
TOP_KEYS = ("task", "metric", "symmetry", "submission")
DATA_KEYS = tuple(name for name in DataConfig.model_fields if name not in ("root", "cache"))


class Line(NamedTuple):
    """One line of competition.yaml: a dotted key, its value, and what it was inferred from."""

    key: str
    value: Any
    why: str


def read(root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Reads the competition.yaml of a data folder.

    Returns:
        The nested values, and where each dotted key is; both are empty if there is no such file.

    Raises:
        UserError: If it is not valid, or holds a key that does not describe a competition.
    """
    file = root / FILE
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return {}, {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from None
    values, lines = plain_yaml.parse(text, str(file))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected `key: value` lines, found a {type(values).__name__}")
    if values.get("data", {}) is None:  # all its lines are commented out
        values["data"] = {}
    places = {key: f"{file}, line {line}" for key, line in lines.items()}
    if not isinstance(values.get("data", {}), dict):
        raise UserError(f"{places['data']}: data: expected indented `key: value` lines, found {values['data']!r}")
    known = {*TOP_KEYS, "data", *(f"data.{key}" for key in DATA_KEYS)}
    remedy = f"a competition is described by {', '.join(TOP_KEYS)} and keys of data; others belong in configs/*.yaml"
    strange = [key for key in lines if key not in known and (key.count(".") == 0 or key.rpartition(".")[0] == "data")]
    raise_problems([Problem(places[key], f"unknown key {key!r}", remedy) for key in strange], f"{file} cannot be used")
    return values, places


def text(lines: list[Line], unknown: list[str]) -> str:
    """Writes a description with a comment on each line."""
    parts = ["# What this competition is; written by `python src/prepare.py detect`, and yours to change.\n"]
    parts += [f"# Not known from the files: {note}\n" for note in unknown]
    top = [line for line in lines if "." not in line.key]
    data = [line for line in lines if "." in line.key]
    parts += [f"{line.key}: {value_text(line.value)}  # {line.why}\n" for line in top]
    parts += ["data:\n"] if data else []
    parts += [f"  {line.key.removeprefix('data.')}: {value_text(line.value)}  # {line.why}\n" for line in data]
    return "".join(parts)


def value_text(value: object) -> str:
    """A value as YAML reads it back, quoted where necessary."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w/@-]*(\.[\w/@-]+)*", value, re.ASCII)
    is_word = plain and plain_yaml.parse(str(value), "").values == value
    return str(value) if is_word else json.dumps(value, ensure_ascii=False)


def nested(lines: list[Line]) -> dict[str, Any]:
    """The lines as a config's nested values."""
    values: dict[str, Any] = {}
    for line in lines:
        section, _, field = line.key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[field] = line.value
    return values


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides a description's values by a config's; label_column replaces label_columns, and vice versa."""
    merged = {**below, **above}
    if isinstance(above.get("data"), dict):
        lower, upper = dict(below.get("data", {})), above["data"]
        for one, other in (("label_column", "label_columns"), ("label_columns", "label_column")):
            if one in upper and other not in upper:
                lower.pop(other, None)
        merged["data"] = {**lower, **upper}
    return merged
