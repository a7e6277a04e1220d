"""Recipes: YAML files and dotted command-line options become one checked `Config`.

Later files win over earlier ones and the command line over all files; mappings are merged, lists are replaced. Relative
paths in a recipe are relative to the current folder; the example data of a shipped recipe is found from any folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from train.config import Config, SourceConfig
from train.recipe_checks import problems
from train.suggest import about_key, about_value, meant_key, way_of
from zerotune.common import command_line
from zerotune.common.errors import UserError
from zerotune.common.schema import Fault, checked, kind_at
from zerotune.common.yaml_lines import Way, dotted, dump_yaml

USAGE = """\
accelerate launch train/main.py --config recipes/NAME.yaml
       [--config recipes/OTHER.yaml ...] [--optim.learning_rate 1e-4 ...]"""
DESCRIPTION = "Later recipes win over earlier ones, options over recipes. `null` stands for nothing."
COMMAND_LINE = "command line"


@dataclasses.dataclass
class _Draft:
    """A configuration in the making: plain values, where each came from, and what stands for all of it."""

    tree: dict[str, Any] = dataclasses.field(default_factory=dict)
    places: dict[Way, str] = dataclasses.field(default_factory=dict)
    source: str = COMMAND_LINE
    unknown: list[Fault] = dataclasses.field(default_factory=list)  # options

    def put(self, way: Way, value: Any, places: Mapping[Way, str]) -> None:
        """Writes `value` at `way`: mappings are merged, anything else replaces what was there."""
        if isinstance(value, dict) and not (way and isinstance(way[-1], int)):
            for key, inner in value.items():
                self.put((*way, key), inner, places)
            return
        self.places = {w: p for w, p in self.places.items() if w[: len(way)] != way}
        self.places |= {w: p for w, p in places.items() if w[: len(way)] == way}
        spot: Any = self.tree
        for step, following in pairwise(way):
            room: Any = [] if isinstance(following, int) else {}
            if isinstance(step, int):
                _make_room(spot, step)
            else:
                spot.setdefault(step, room)
            if not isinstance(spot[step], type(room)):
                spot[step] = room
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
        _print_help()
        raise SystemExit(0)
    given = command_line.pairs([word for word in arguments if word != "--print_config"], _is_known)
    draft = _Draft()
    for name, text in given:
        if name == "--config":
            located = command_line.read_file(text, "recipe")
            draft.put((), located.value, located.places)
            draft.source = text
    for name, text in given:
        if name != "--config":
            _put_option(draft, name, text)
    config = _finish(draft)
    if config.model.trust_remote_code and (place := draft.places["model", "trust_remote_code"]) != COMMAND_LINE:
        raise UserError(
            f"{place}: model.trust_remote_code runs foreign code and is accepted on the command line only: "
            "--model.trust_remote_code true"
        )
    if "--print_config" in arguments:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def load(path: str | Path) -> Config:
    """The configuration in a run folder's `config.yaml`, checked as strictly as a recipe."""
    located = command_line.read_file(str(path), "recipe")
    return _finish(_Draft(located.value, located.places, str(path)))


def to_yaml(config: Config) -> str:
    """The resolved whole; `load` reads it back to an equal value."""
    return dump_yaml(dataclasses.asdict(config))


def _print_help() -> None:
    """Every option, in groups; made for 80 columns."""
    parser = argparse.ArgumentParser(usage=USAGE, description=DESCRIPTION)
    parser.add_argument("--config", metavar="FILE", help="A recipe in YAML; may be given several times.")
    parser.add_argument("--print_config", action="store_true", help="Show the resolved whole as YAML and exit.")
    command_line.add(parser, Config)
    command_line.add(parser, SourceConfig, "data.train.N.")
    parser.print_help()


def _is_known(option: str) -> bool:
    """Of an option that there is not, all words are taken: it may be a list where it comes from."""
    return option == "--config" or kind_at(Config, way_of(option.removeprefix("--"))) is not None


def _put_option(draft: _Draft, name: str, text: str) -> None:
    way = way_of(name.removeprefix("--"))
    kind = kind_at(Config, way)
    if kind is None:
        draft.unknown.append(Fault(way, f"unknown option {name}", unknown=True, value=text))
        return
    located = command_line.located(text, kind, name)
    places = dict.fromkeys(((*way, *inner) for inner in located.places), COMMAND_LINE)
    draft.put(way, located.value if located.value != {} else None, places)  # empty, it would only be merged


def _finish(draft: _Draft) -> Config:
    """Checks the whole and builds it. Raises UserError with all that is wrong in any file or option."""
    config, faults = checked(Config, draft.tree)
    places = {**draft.places, (): draft.source}
    told = [*_told(faults, places, dotted), *_told(draft.unknown, {(): COMMAND_LINE}, _option)]
    doubted = [fault.way for fault in (*faults, *draft.unknown)]
    doubted += [way_of(meant) for fault in (*faults, *draft.unknown) if (meant := _meant(fault))]
    for key, message in problems(config):
        if not _is_doubted(way_of(key), message, doubted):
            told.append((_place(places, way_of(key)), f"{key}: {message}."))
    if told:
        order = [*draft.places.values(), COMMAND_LINE, draft.source]
        told.sort(key=lambda line: order.index(line[0]))
        raise UserError("\n".join(dict.fromkeys(f"{place}: {message}" for place, message in told)))
    return config


def _told(faults: Sequence[Fault], places: Mapping[Way, str], spell: Callable[[Way], str]) -> Iterator[tuple[str, str]]:
    """(place, message) of each, with what was probably meant."""
    meant = {_meant(fault) for fault in faults}
    for fault in faults:
        if fault.missing and dotted(fault.way) in meant:
            continue  # it stands there under another name
        cure = about_key(fault.way, fault.value, spell) if fault.unknown else about_value(fault.way, fault.value)
        yield _place(places, fault.way), f"{fault.message}{cure}"


def _meant(fault: Fault) -> str:
    return meant_key(fault.way).partition(":")[0] if fault.unknown else ""


def _option(way: Way) -> str:
    return "--" + ".".join(map(str, way))


def _is_doubted(way: Way, message: str, doubted: Sequence[Way]) -> bool:
    """Whether a problem may only come from a value that was left out for being wrong itself."""
    above_or_below = (way[: len(other)] == other[: len(way)] for other in doubted)
    return any(above_or_below) or any(dotted(other) in message for other in doubted)
