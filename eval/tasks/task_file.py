"""Reads and checks a YAML task file, and turns its texts into columns or templates of a row."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateSyntaxError

from zerotune.common.errors import UserError
from zerotune.common.suggest import did_you_mean
from zerotune.common.yaml_lines import Located, dotted, read_yaml
from zerotune.data.hub import Hub
from zerotune.data.row_templates import Cell, cell, template

KINDS = {  # kind -> its own keys, the required ones first
    "generate": ("prompt", "reference", "system", "chat", "extract", "stop", "max_new_tokens"),
    "choices": ("prompt", "choices", "answer", "system", "chat", "separator"),
    "perplexity": ("text",),
}
REQUIRED = {"generate": 2, "choices": 3, "perplexity": 1}
COMMON = ("name", "version", "about", "kind", "data", "hub", "metrics", "groups")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class Index(int):
    """The index of the correct choice of every row, given as a number in the task file."""


@dataclass(frozen=True)
class TaskFile:
    """The content of a task file. cells, groups: key -> function that reads its value from a row."""

    path: Path
    name: str
    version: int
    about: str
    kind: str
    source: Hub | str | None
    metrics: tuple[str, ...]
    cells: Mapping[str, Cell]
    groups: Mapping[str, Cell] = field(default_factory=dict)
    chat: bool = True
    separator: str = " "
    extract: re.Pattern[str] | None = None
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 64


def read_task_file(path: Path, metrics: Mapping[str, Collection[str]]) -> TaskFile:
    """Read a task file. metrics: kind -> allowed metrics, the first by default. Raises UserError with file:line."""
    located = read_yaml(path)
    return _Reader(path, located, metrics).read()


class _Reader:
    """Reads the keys of one file, and knows the line of each for messages."""

    def __init__(self, path: Path, located: Located, metrics: Mapping[str, Collection[str]]) -> None:
        self.path, self.located, self.metrics = path, located, metrics
        if not isinstance(located.value, dict):
            raise UserError(f"{path}:1: a task file must be a mapping of keys to values")
        self.value: dict[str, Any] = located.value

    def read(self) -> TaskFile:
        kind = self._text("kind", "")
        if kind not in KINDS:
            self._refuse("kind", f"must be one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
        known = (*COMMON, *KINDS[kind])
        for key in self.value:
            if key not in known:
                self._refuse(key, f"unknown in a task of kind {kind}{did_you_mean(key, known)}")
        for key in ("name", *KINDS[kind][: REQUIRED[kind]]):
            if self.value.get(key) is None:
                self._refuse(key, "is missing")
        name = self._text("name", "")
        if not NAME.fullmatch(name):
            self._refuse("name", f"{name!r} must be letters, digits, _ and -, a letter first")
        return TaskFile(
            path=self.path,
            name=name,
            version=self._number("version", 1),
            about=self._text("about", f"{kind}, from {self.path.name}"),
            kind=kind,
            source=self._source(),
            metrics=self._metrics(kind),
            cells={key: self._cell((key,), self.value[key]) for key in self._cell_keys(kind)},
            groups={key: self._cell(("groups", key), text) for key, text in self._mapping("groups").items()},
            chat=self._flag("chat", True),
            separator=self._text("separator", " "),
            extract=self._pattern("extract"),
            stop=self._texts("stop"),
            max_new_tokens=self._number("max_new_tokens", 64),
        )

    def _cell_keys(self, kind: str) -> list[str]:
        cells = ("prompt", "reference", "system", "choices", "answer", "text")
        return [key for key in KINDS[kind] if key in cells and self.value.get(key) is not None]

    def _source(self) -> Hub | str | None:
        if self.value.get("data") is not None and self.value.get("hub") is not None:
            self._refuse("hub", "is given together with data; remove one of them")
        if self.value.get("data") is not None:
            return str(self.path.parent / self._text("data", ""))  # relative to the task file
        hub = self._mapping("hub")
        if not hub:
            return None
        for key, text in hub.items():
            if key not in ("path", "split", "name", "revision"):
                self._refuse("hub", f"unknown key {key}; known are path, split, name, revision", key)
            if not isinstance(text, str):
                self._refuse("hub", f"{key} must be text", key)
        if "path" not in hub:
            self._refuse("hub", "path is missing")
        return Hub(**{"split": "test", **hub})

    def _metrics(self, kind: str) -> tuple[str, ...]:
        known = tuple(self.metrics[kind])
        names = self._texts("metrics") or known[:1]
        for name in names:
            if name not in known:
                self._refuse(
                    "metrics", f"unknown metric {name}{did_you_mean(name, known) or '; known: ' + ', '.join(known)}"
                )
        return names

    def _cell(self, way: tuple[str | int, ...], text: Any) -> Cell:
        if isinstance(text, list):
            if not text:
                self._refuse(str(way[0]), "is an empty list")
            cells = [self._cell((*way, place), inner) for place, inner in enumerate(text)]
            return lambda row: [inner(row) for inner in cells]
        if way == ("answer",) and type(text) is int:  # the same choice for every row
            return lambda row: Index(text)
        if not isinstance(text, str):
            self._refuse(str(way[0]), f"{text!r} must be text: a column name or a template", *way[1:])
        read = template if way[0] == "system" else cell
        try:
            return read(text, dotted(way))
        except TemplateSyntaxError as error:
            self._refuse(str(way[0]), f"not a Jinja template: {error.message}", *way[1:])

    def _text(self, key: str, default: str) -> str:
        value = self.value.get(key)
        if value is not None and not isinstance(value, str):
            self._refuse(key, f"{value!r} must be text (put it in quotes)")
        return default if value is None else value

    def _texts(self, key: str) -> tuple[str, ...]:
        value = self.value.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(inner, str) and inner for inner in values):
            self._refuse(key, "must be a list of texts")
        return tuple(values)

    def _number(self, key: str, default: int) -> int:
        value = self.value.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self._refuse(key, f"{value!r} must be a whole number of at least 1")
        return value

    def _flag(self, key: str, default: bool) -> bool:
        value = self.value.get(key, default)
        if not isinstance(value, bool):
            self._refuse(key, f"{value!r} must be true or false")
        return value

    def _mapping(self, key: str) -> dict[str, Any]:
        value = self.value.get(key) or {}
        if not isinstance(value, dict):
            self._refuse(key, "must be a mapping of names to texts")
        return value

    def _pattern(self, key: str) -> re.Pattern[str] | None:
        try:
            pattern = re.compile(self._text(key, ""), re.DOTALL)
        except re.error as error:
            self._refuse(key, f"not a regular expression: {error}")
        return pattern if pattern.pattern else None

    def _refuse(self, key: str, reason: str, *inside: str | int) -> NoReturn:
        place = self.located.places.get((key, *inside)) or self.located.places.get((key,), f"{self.path}:1")
        raise UserError(f"{place}: {dotted((key, *inside))}: {reason}")
