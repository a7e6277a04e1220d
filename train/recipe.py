"""Recipes: YAML files and dotted command-line options become one checked `Config`.

Later files win over earlier ones and the command line over all files; mappings are merged, lists are replaced. Relative
paths in a recipe are relative to the current folder. Everything is checked here first, because only here the place of a
value is known; jsonargparse then fills in the defaults, builds the dataclasses and writes the help.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.yaml_lines import Located, Way, dotted, dump_yaml, parse_yaml, read_yaml
from train.checks import problems
from train.config import Config
from train.errors import UserError
from train.options_help import build_parser, print_help
from train.suggest import did_you_mean
from train.value_types import accepts, find_fault, is_union, kind_at, leaf_ways, shown

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclasses.dataclass
class _Draft:
    """A configuration in the making: plain values, where each came from, and what stands for all of it."""

    tree: dict[str, Any] = dataclasses.field(default_factory=dict)
    places: dict[Way, str] = dataclasses.field(default_factory=dict)
    source: str = "command line"

    def put(self, way: Way, value: Any, places: dict[Way, str]) -> None:
        """Writes `value` at `way`: mappings are merged, anything else replaces what was there."""
        if isinstance(value, dict) and not (way and isinstance(way[-1], int)):
            for key, inner in value.items():
                self.put((*way, key), inner, places)
            return
        self.places = {w: p for w, p in self.places.items() if w[: len(way)] != way}
        self.places |= {w: p for w, p in places.items() if w[: len(way)] == way}
        spot: Any = self.tree
        for step, following in pairwise(way):
            if isinstance(step, int):
                _make_room(spot, step)
            else:
                spot.setdefault(step, [] if isinstance(following, int) else {})
            spot = spot[step]
        if isinstance(way[-1], int):
            _make_room(spot, way[-1])
        spot[way[-1]] = value


def _place(places: dict[Way, str], way: Way) -> str:
    """Where `way` was given: itself, else something inside it, else what it stands in."""
    if way in places:
        return places[way]
    inside = next((place for inner, place in places.items() if inner[: len(way)] == way), None)
    return inside or _place(places, way[:-1])


def _make_room(items: list[Any], index: int) -> None:
    if index > len(items):
        raise UserError(f"command line: there is no source {index}; the next free number is {len(items)}.")
    if index == len(items):
        items.append({})


def parse(arguments: Sequence[str]) -> Config:
    """The configuration that command-line arguments describe.

    `--help` and `--print_config` print and raise SystemExit(0). Raises UserError with one message: place, key, cure.
    """
    if {"-h", "--help"} & set(arguments):
        print_help()
        raise SystemExit(0)
    options = _options([word for word in arguments if word != "--print_config"])
    draft = _Draft()
    for name, text in options:
        if name == "--config":
            located = _read(text)
            _refuse_foreign_code(located)
            draft.put((), located.value, located.places)
            draft.source = text
    for name, text in options:
        if name != "--config":
            _put_option(draft, name, text)
    config = _finish(draft)
    if "--print_config" in arguments:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def load(path: str | Path) -> Config:
    """The configuration in a run folder's `config.yaml`, checked as strictly as a recipe."""
    located = _read(str(path))
    return _finish(_Draft(located.value, located.places, str(path)))


def to_yaml(config: Config) -> str:
    """The resolved whole; `load` reads it back to an equal value."""
    return dump_yaml(dataclasses.asdict(config))


def _options(words: Sequence[str]) -> list[tuple[str, str]]:
    """(--name, text) pairs in order."""
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"command line: unexpected {word!r}; every value follows an option: --config FILE.")
        name, equals, text = word.partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"command line: {name} needs a value.")
            text = rest.pop(0)
        pairs.append((name, text))
    return pairs


def _read(file: str) -> Located:
    path = Path(file)
    if not path.is_file():
        beside = sorted(map(str, path.parent.glob("*.yaml"))) if path.parent.is_dir() else []
        raise UserError(f"{file}: there is no such recipe{did_you_mean(file, beside) or '.'}")
    located = read_yaml(path)
    if not isinstance(located.value, dict):
        raise UserError(f"{file}:1: a recipe is a mapping of keys to values, not {shown(located.value)}.")
    _refuse_faults(Config, located.value, (), located.places)
    return located


def _refuse_faults(kind: Any, value: Any, way: Way, places: dict[Way, str]) -> None:
    fault = find_fault(kind, value, way)
    if fault is None:
        return
    cure = _nearest(fault.way, dotted) if fault.unknown else "."
    raise UserError(f"{_place(places, fault.way)}: {fault.message}{cure}")


def _nearest(way: Way, spell: Callable[[Way], str]) -> str:
    """`; did you mean ...?` for an unknown key, spelt as it would be given."""
    if len(way) > 2 and isinstance(way[2], int):  # a field of one source
        ways = [(*way[:3], *leaf) for leaf in leaf_ways(kind_at(Config, way[:3]))]
    else:
        ways = leaf_ways(Config)
    return did_you_mean(spell(way), [spell(leaf) for leaf in ways]) or "; --help lists all keys."


def _option(way: Way) -> str:
    return "--" + ".".join(map(str, way))


def _refuse_foreign_code(located: Located) -> None:
    if located.value.get("model", {}).get("trust_remote_code"):
        place = located.places["model", "trust_remote_code"]
        raise UserError(
            f"{place}: model.trust_remote_code runs foreign code and is accepted on the command line only: "
            "--model.trust_remote_code true"
        )


def _put_option(draft: _Draft, name: str, text: str) -> None:
    way = _way(name.removeprefix("--"))
    kind = kind_at(Config, way)
    if kind is None:
        raise UserError(f"command line: unknown option {name}{_nearest(way, _option)}")
    if accepts(kind, text) and not (is_union(kind) and (text == "null" or text.startswith("["))):
        located = Located(text, {(): ""})  # text is taken as it is
    else:
        located = parse_yaml(text, f"command line: {name}")
    places = dict.fromkeys(((*way, *inner) for inner in located.places), "command line")
    _refuse_faults(kind, located.value, way, places)
    draft.put(way, located.value, places)


def _way(key: str) -> Way:
    """data.train.0.path or data.train[0].path -> ("data", "train", 0, "path")"""
    parts = re.sub(r"\[([0-9]+)\]", r".\1", key).split(".")
    return tuple(int(part) if re.fullmatch("[0-9]+", part) else part for part in parts)


def _finish(draft: _Draft) -> Config:
    """Checks the whole and builds it."""
    places = {**draft.places, (): draft.source}
    _refuse_faults(Config, draft.tree, (), places)
    parser = _builder()
    built = parser.instantiate(parser.parse_object(copy.deepcopy(draft.tree)))
    config = Config(**{field.name: built[field.name] for field in dataclasses.fields(Config)})
    found = list(problems(config))
    if found:
        raise UserError("\n".join(f"{_place(places, _way(key))}: {message}." for key, message in found))
    return config


@cache
def _builder() -> ArgumentParser:
    return build_parser()
