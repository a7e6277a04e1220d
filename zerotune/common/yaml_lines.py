"""Reads YAML with the line of each value, so that messages can name file:line.

Supports a safe subset: mappings with text keys, lists, and scalars of YAML 1.2 (1e-4 is a number; yes and dates are
text). Tags, anchors and duplicate keys are rejected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zerotune.common.errors import UserError

KeyPath = tuple[str | int, ...]  # a key from the root: ("optim", "learning_rate"), ("data", "train", 0, "path")


@dataclass(frozen=True)
class Located:
    """A document as plain values, and the `file:line` of each key."""

    value: Any
    places: dict[KeyPath, str]


_BOOL, _NULL = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_RESOLVERS = (
    (_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (_INT, re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789")),
    (_FLOAT, re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")),
    (_FLOAT, re.compile(r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"), list("-+.")),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name


class _Dumper(yaml.SafeDumper):
    """Keeps YAML 1.1's resolvers beside ours: text that either would take for something else is quoted."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # lists stand indented under their key


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    """Escape line breaks that only YAML knows; in a folded quoted line they would be read as spaces."""
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def read_yaml(path: Path) -> Located:
    """Read a file. Raises UserError with file:line for anything outside the supported subset of YAML."""
    name = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}).") from None
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> Located:
    """Parse a text; `name` is its name in messages."""
    places: dict[KeyPath, str] = {}
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise UserError(f"{name}:{line}: YAML anchors, aliases and tags (& * !) are not supported.")
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line_text = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{name}{line_text}: not valid YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {error}.") from None
    value = {} if node is None else _plain(node, (), name, places)
    return Located(value, places)


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads back to equal values."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def _plain(node: yaml.Node, key: KeyPath, name: str, places: dict[KeyPath, str]) -> Any:
    places.setdefault(key, f"{name}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, key, name, places)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*key, i), name, places) for i, child in enumerate(node.value)]
    return _scalar(node.tag, str(node.value))


def _mapping(node: yaml.MappingNode, parent: KeyPath, name: str, places: dict[KeyPath, str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{place}: a key must be a plain word.")
        key = (*parent, word := str(key_node.value))
        if word in result:
            raise UserError(f"{place}: {dotted(key)} is given twice (first at {places[key]}).")
        places[key] = place
        result[word] = _plain(value_node, key, name, places)
    return result


def _scalar(tag: str, text: str) -> Any:
    if tag == _NULL:
        return None
    if tag == _BOOL:
        return text.lower() == "true"
    if tag == _INT and len(text) < 4000:  # Python reads no longer ones
        return int(text.replace("_", ""))
    if tag == _FLOAT:
        return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    return text


def dotted(key: KeyPath) -> str:
    """("data", "train", 0, "path") -> data.train[0].path"""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in key]
    return "".join(parts).lstrip(".")
