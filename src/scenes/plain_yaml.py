"""Reads YAML 1.2 as plain values with the line of each key; no tags, aliases, dates or duplicate keys."""

import math
import re
from collections.abc import Mapping
from io import StringIO
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.resolver import VersionedResolver

from scenes.console import UserError

NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # neither can be part of a path or of a CSV


class Parsed(NamedTuple):
    """Plain values, and the line (from 1) of each dotted key in them."""

    values: Any
    lines: dict[str, int]


class _Resolver(VersionedResolver):
    """Decides which plain scalars are numbers: not 1_000, and none is a date."""

    def resolve(self, kind: type[Node], value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        if kind is ScalarNode and ("_" in value or str(tag).rpartition(":")[2] in ("timestamp", "merge", "value")):
            return self.DEFAULT_SCALAR_TAG
        return tag


def parse(text: str, source: str) -> Parsed:
    """Reads YAML as dicts, lists, str, int, float, bool and None.

    Args:
        text: The YAML; keys are read as strings, exactly as written.
        source: Where it comes from, for messages.

    Raises:
        UserError: If it is not valid YAML, or has tags, aliases, duplicate keys or non-finite numbers.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver = _Resolver
    lines: dict[str, int] = {}
    try:
        for event in yaml.parse(text):
            if isinstance(event, AliasEvent):
                raise _error("aliases are not supported", event)
            if getattr(event, "tag", None):
                raise _error(f"the tag {event.tag} is not supported", event)
        node = yaml.compose(text)
        return Parsed(None if node is None else _plain(node, yaml.constructor, "", lines), lines)
    except RecursionError:
        raise UserError(f"{source}: nested too deeply") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{source}, line {line}: not valid YAML: #x{error.character:04x} is not a text character"
        ) from None
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def dump(values: Mapping[str, Any]) -> str:
    """Writes plain values as YAML that `parse` reads back equal."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump(values, stream)
    return stream.getvalue()


def _plain(node: Node, constructor: Any, prefix: str, lines: dict[str, int]) -> Any:
    """Converts a node to a plain value and adds the lines of its keys to `lines`."""
    if isinstance(node, SequenceNode):
        return [_plain(item, constructor, prefix, lines) for item in node.value]
    if isinstance(node, MappingNode):
        values = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise _error("a key must be a plain word", key)
            name = _text(key)
            if name in values:
                raise _error(f"duplicate key {name!r}", key)
            lines.setdefault(prefix + name, key.start_mark.line + 1)
            values[name] = _plain(value, constructor, f"{prefix}{name}.", lines)
        return values
    assert isinstance(node, ScalarNode)
    _text(node)
    value = constructor.construct_object(node)
    if isinstance(value, float) and not math.isfinite(value):
        raise _error(f"{node.value} is not a finite number", node)
    return value


def _text(node: ScalarNode) -> str:
    if NOT_TEXT.search(node.value):
        raise _error(f"{node.value!r} is not text", node)
    return node.value


def _error(problem: str, at: Any) -> MarkedYAMLError:
    return MarkedYAMLError(problem=problem, problem_mark=at.start_mark)
