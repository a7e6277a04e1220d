"""Recipes: YAML files and dotted command-line options become one checked `Config`.

Later files win over earlier ones and the command line over all files; mappings are merged, lists are replaced. Relative
paths in a recipe are relative to the current folder; the example data of a shipped recipe is found from any folder.
Everything is checked here first, because only here the place of a value is known; jsonargparse then fills in the
defaults, builds the dataclasses and writes the help.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checks import problems
from train.config import Config
from train.options_help import build_parser, print_help
from train.suggest import about_key, about_value, meant_key, way_of
from train.value_types import Fault, accepts, clean, is_union, kind_at, shown
from zerotune import shipped
from zerotune.common.errors import UserError
from zerotune.common.files import nearest
from zerotune.common.yaml_lines import Located, Way, dotted, dump_yaml, parse_yaml, read_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


@dataclasses.dataclass
class _Draft:
    """A configuration in the making: plain values, where each came from, and what stands for all of it."""

    tree: dict[str, Any] = dataclasses.field(default_factory=dict)
    places: dict[Way, str] = dataclasses.field(default_factory=dict)
    source: str = "command line"
    refused: list[str] = dataclasses.field(default_factory=list)  # lines of the message
    doubted: list[str] = dataclasses.field(default_factory=list)  # dotted keys whose values are not what was meant

    def refuse(self, faults: Iterable[Fault], places: Mapping[Way, str], spell: Callable[[Way], str]) -> None:
        """Keeps what is wrong for the one message that lists all of it."""
        faults = list(faults)
        meant = {meant_key(fault.way).partition(":")[0] for fault in faults if fault.unknown}
        for fault in faults:
            about = dotted(fault.about or fault.way)
            if not (fault.about and about in meant):  # what is missing stands there under another name
                cure = (
                    about_key(fault.way, fault.value, spell) if fault.unknown else about_value(fault.way, fault.value)
                )
                self.refused.append(f"{_place(places, fault.way)}: {fault.message}{cure}")
            self.doubted.append(about)
        self.doubted += filter(None, meant)

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


def _place(places: Mapping[Way, str], way: Way) -> str:
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
            value, faults = clean(Config, located.value)
            draft.refuse(faults, located.places, dotted)
            _refuse_foreign_code(draft, value, located.places)
            draft.put((), value, located.places)
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
    value, faults = clean(Config, located.value)
    draft = _Draft(value, located.places, str(path))
    draft.refuse(faults, located.places, dotted)
    return _finish(draft)


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
        words = []
        while not equals and rest and not rest[0].startswith("--") and (not words or not _is_known(name)):
            words.append(rest.pop(0))  # of an option that there is not, all words: it may be a list where it comes from
        if not equals and not words and _is_known(name):
            raise UserError(f"command line: {name} needs a value.")
        pairs.append((name, text if equals else " ".join(words)))
    return pairs


def _is_known(option: str) -> bool:
    return option == "--config" or kind_at(Config, way_of(option.removeprefix("--"))) is not None


def _read(file: str) -> Located:
    path = Path(file)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{file}: is no regular file; every rank reads the recipe: write it to a file")
    if not path.is_file():
        raise UserError(f"{file}: there is no such recipe{nearest(path) or '.'}")
    located = read_yaml(path)
    if not isinstance(located.value, dict):
        raise UserError(f"{file}:1: a recipe is a mapping of keys to values, not {shown(located.value)}.")
    return Located(shipped.with_examples(located.value, path), located.places)


def _option(way: Way) -> str:
    return "--" + ".".join(map(str, way))


def _refuse_foreign_code(draft: _Draft, value: Mapping[str, Any], places: Mapping[Way, str]) -> None:
    if value.get("model", {}).get("trust_remote_code"):
        draft.refused.append(
            f"{places['model', 'trust_remote_code']}: model.trust_remote_code runs foreign code and is accepted on the "
            "command line only: --model.trust_remote_code true"
        )


def _put_option(draft: _Draft, name: str, text: str) -> None:
    way = way_of(name.removeprefix("--"))
    kind = kind_at(Config, way)
    if kind is None:
        draft.refuse([Fault(way, f"unknown option {name}", unknown=True, value=text)], {(): "command line"}, _option)
        return
    if accepts(kind, text) and not (is_union(kind) and (text == "null" or text.startswith("["))):
        located = Located(text, {(): ""})  # text is taken as it is
    else:
        located = parse_yaml(text, f"command line: {name}")
    places = dict.fromkeys(((*way, *inner) for inner in located.places), "command line")
    value, faults = clean(kind, located.value, way)
    draft.refuse(faults, places, dotted)
    if accepts(kind, value):
        draft.put(way, value if located.value is not None else None, places)  # an empty mapping would only be merged


def _finish(draft: _Draft) -> Config:
    """Checks the whole and builds it. Raises UserError with all that is wrong in any file or option."""
    places = {**draft.places, (): draft.source}
    tree, faults = clean(Config, draft.tree)
    draft.refuse(faults, places, dotted)
    parser = _builder()
    built = parser.instantiate(parser.parse_object(copy.deepcopy(tree)))
    config = Config(**{field.name: built[field.name] for field in dataclasses.fields(Config)})
    found = [(key, message) for key, message in problems(config) if not _is_doubted(key, message, draft.doubted)]
    told = draft.refused + [f"{_place(places, way_of(key))}: {message}." for key, message in found]
    if told:
        raise UserError("\n".join(dict.fromkeys(told)))
    return config


def _is_doubted(key: str, message: str, doubted: Sequence[str]) -> bool:
    """Whether a problem may only come from a value that was left out for being wrong itself."""
    above_or_below = (f"{key}.".startswith((f"{d}.", f"{d}[")) or f"{d}.".startswith(f"{key}.") for d in doubted)
    return any(above_or_below) or any(d in message for d in doubted)


@cache
def _builder() -> ArgumentParser:
    return build_parser()
