"""YAML read as YAML 1.2's core schema, with the line of every key.

PyYAML follows YAML 1.1, in which ``1e-4`` is text, ``no`` is false, ``12:30`` is 750 and ``010`` is eight. Here
``1e-4`` is a number, and only what looks like a number, ``true``, ``false`` or ``null`` is anything but text
(YAML 1.2.2, section 10.3.2). Repeated keys, which PyYAML takes silently, are mistakes.

On PyYAML's nodes rather than ruamel.yaml, which takes twice the time, reads ``1_000`` as a number and ``2020-01-01``
as a date, and passes over tags that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from veneer.errors import UserError

__all__ = ["MAX_BYTES", "Document", "Key", "read_yaml", "write_yaml"]

Key = tuple[str | int, ...]
"""The place of a value: the names and list places that lead to it."""

_INT = re.compile(r"[-+]?[0-9]+$|0o[0-7]+$|0x[0-9a-fA-F]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_CORE = (
    ("null", re.compile(r"(~|null|Null|NULL|)$"), [*"~nN", ""]),
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), [*"tTfF"]),
    ("int", _INT, [*"-+0123456789"]),
    ("float", _FLOAT, [*"-+.0123456789"]),
)
_PATTERNS = {name: pattern for name, pattern, _ in _CORE}


def _int(text: str) -> int:
    # 010 is ten, which int(text, 0) refuses
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text if base == 10 else text[2:], base)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_VALUES: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _int,
    "float": _float,
}
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_MAX_CHARACTERS = 2**20
MAX_BYTES = 4 * _MAX_CHARACTERS
"""Size of the largest text in UTF-8 that is read."""
_MAX_LINES = 20_000
_MAX_DEPTH = 20
_MAX_NODES = 20_000
_TOO_LARGE = "is nested too deeply or too long for a config"


class _TooLarge(yaml.MarkedYAMLError):
    """A text with more values than a config has."""


class _Loader(yaml.SafeLoader):
    """A loader that resolves plain text by the core schema of YAML 1.2, and stops at more values than a config has."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own name and type)
    nodes = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Build the tree of the next value, which stops a long or deep text soon."""
        self.nodes += 1
        self.depth += 1
        if self.nodes > _MAX_NODES or self.depth > _MAX_DEPTH:
            raise _TooLarge(problem=_TOO_LARGE, problem_mark=self.get_mark())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """A dumper that puts text in quotes if either version of YAML would take it for something else."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists further than their key, as people write them."""
        super().increase_indent(flow, False)

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape the line ends of Unicode, which PyYAML else writes as they are and reads back as spaces."""
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)

for _name, _pattern, _first in _CORE:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)


@dataclass(frozen=True)
class Document:
    """The values of a YAML text, and their lines.

    Attributes:
        values: mappings, lists, text, numbers, true, false and null.
        lines: the line, from 1, of each key and list element.
    """

    values: Any
    lines: dict[Key, int] = field(default_factory=dict)


def read_yaml(text: str, origin: str) -> Document:
    """Read one YAML document; ``origin`` names it in messages.

    Raises:
        UserError: it is not YAML, is larger than any config, repeats a key, or has tags or keys that no config has.
    """
    for name, length, most in (
        ("characters", len(text), _MAX_CHARACTERS),
        ("lines", len(text.splitlines()), _MAX_LINES),
    ):
        if length > most:
            what = f"is {length:,} {name} long, but a config has at most {most:,}"
            raise UserError(what, code="config.too_large", where=origin)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return Document(None) if node is None else _Reader(origin).read(node)
    except _TooLarge as error:
        raise _mistake(_TOO_LARGE, "config.too_large", origin, error.problem_mark) from None
    except yaml.MarkedYAMLError as error:
        raise _mistake(f"not YAML: {error.problem}", "config.not_yaml", origin, error.problem_mark) from None
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _mistake(f"not YAML: {' '.join(str(error).split())}", "config.not_yaml", origin, None) from None


def _mistake(what: str, code: str, origin: str, mark: yaml.Mark | None) -> UserError:
    return UserError(what, code=code, where=f"{origin}:{mark.line + 1}" if mark else origin)


def write_yaml(values: Any) -> str:
    """Return YAML that ``read_yaml`` reads back equal, and readers of YAML 1.1 too."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Reader:
    """A reader of nodes as plain values, which refuses what a config has no use for."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.lines: dict[Key, int] = {}
        self.nodes = 0

    def read(self, node: yaml.Node) -> Document:
        return Document(self._value(node, ()), self.lines)

    def _value(self, node: yaml.Node, key: Key) -> Any:
        self.nodes += 1
        # an alias may stand for its own parent, or for a list of lists of lists that fills the memory
        if self.nodes > _MAX_NODES or len(key) > _MAX_DEPTH:
            raise self._error(node, _TOO_LARGE, "config.too_large")
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            raise self._error(node, f"the tag {node.tag} has no meaning here", "config.unknown_tag")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*key, place)) for place, child in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name_node, child in node.value:
            name = str(name_node.value)
            if not isinstance(name_node, yaml.ScalarNode):
                raise self._error(name_node, "a key should be a name", "config.key_not_a_name")
            below = (*key, name)
            if name in values:
                first = self.lines[below]
                what = f"{'.'.join(map(str, below))} is given twice, first in line {first}"
                raise self._error(name_node, what, "config.duplicate_key")
            self.lines[below] = name_node.start_mark.line + 1
            values[name] = self._value(child, below)
        return values

    def _scalar(self, node: yaml.Node) -> Any:
        tag, text = node.tag.rpartition(":")[2], str(node.value)
        if tag == "str":
            return text
        if tag not in _PATTERNS:
            raise self._error(node, f"the tag {node.tag} has no meaning here", "config.unknown_tag")
        if not _PATTERNS[tag].match(text):
            raise self._error(node, f"{text!r} is no {tag}", "config.not_yaml")
        return _VALUES[tag](text)

    def _error(self, node: yaml.Node, what: str, code: str) -> UserError:
        return _mistake(what, code, self.origin, node.start_mark)
