"""YAML without its traps, read strictly and written so that it reads back the same."""

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from scenes.console import UserError


class _Loader(yaml.SafeLoader):
    """YAML without its traps: no duplicate keys, aliases, tags or dates; `no` is a word, `1e-3` and 010 are numbers."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _error("aliases are not supported", event)
        if getattr(event, "tag", None):
            raise _error(f"the tag {event.tag} is not supported", event)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if re.search("[\0\ud800-\udfff]", value):  # neither may stand in a path, a CSV or this run's config.yaml
            raise _error(f"{value!r} is not text", node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, bool) or not isinstance(key, str | int):
                raise _error("a key must be a plain word", key_node)
            if str(key) in seen:
                raise _error(f"the key {key!r} stands twice", key_node)
            seen.add(str(key))
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))  # YAML's own takes 010 for 8 and 1:30 for 90

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise _error(f"{node.value} is not a finite number", node)
        return value


class _Dumper(yaml.SafeDumper):
    """Quotes each word that either this file's reader or plain YAML would not read as a word."""


def _error(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


# Of YAML's own guesses at what a plain word is only `null` stays.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, regexp) for tag, regexp in resolvers if tag.endswith(":null")]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PLAIN_WORDS = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|nan|NaN))",
}
for _kind, _pattern in _PLAIN_WORDS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), "tTfF-+.0123456789")
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def parse(text: str, source: str) -> Any:
    """Reads YAML as plain values.

    Args:
        text: The YAML.
        source: Where it is from, for messages.

    Raises:
        UserError: If it is not valid, or uses what this reader refuses.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError(f"{source}: not a config: brackets or lines are nested too deeply") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(
            f"{source}, line {line}: not valid YAML: #x{error.character:04x} is no text character"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def dump(values: Mapping[str, Any]) -> str:
    """Writes plain values as YAML that `parse` reads back equal."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def key_lines(text: str) -> dict[str, int]:
    """Finds the line, from 1, on which each dotted key stands."""
    found: dict[str, int] = {}

    def visit(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[prefix + str(key.value)] = key.start_mark.line + 1
                visit(value, f"{prefix}{key.value}.")

    visit(yaml.compose(text, _Loader), "")
    return found
