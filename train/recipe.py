"""Reads YAML files and dotted command-line options into one checked `Config`.

Later files override earlier ones, and the command line overrides all files; mappings are merged, lists are replaced.
Relative paths in a recipe are relative to the current folder; shipped example data is found from any folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from train.checks import problems
from train.config import Config, SourceConfig
from train.suggest import about_key, about_value, meant_key, way_of
from zerotune.common import options
from zerotune.common.errors import UserError
from zerotune.common.schema import Fault, checked, kind_at
from zerotune.common.yaml_lines import Way, dotted, dump_yaml

USAGE = """\
accelerate launch train/main.py --config recipes/NAME.yaml
       [--config recipes/OTHER.yaml ...] [--optim.learning_rate 1e-4 ...]"""
DESCRIPTION = "Later recipes override earlier ones, options override recipes. `null` unsets a key."
COMMAND_LINE = "command line"


@dataclasses.dataclass
class _Draft:
    """A configuration before it is checked: plain values, and the file:line of each."""

    tree: dict[str, Any] = dataclasses.field(default_factory=dict)
    places: dict[Way, str] = dataclasses.field(default_factory=dict)
    source: str = COMMAND_LINE
    unknown: list[Fault] = dataclasses.field(default_factory=list)  # unknown options

    def put(self, way: Way, value: Any, places: Mapping[Way, str]) -> None:
        """Write `value` at `way`: mappings are merged, other values are replaced."""
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
    """The file:line of `way`; else of something inside it, else of its parent."""
    if way in places:
        return places[way]
    inside = next((place for inner, place in places.items() if inner[: len(way)] == way), None)
    return inside or _place(places, way[:-1])


def _make_room(items: list[Any], index: int) -> None:
    if index > len(items):
        raise UserError(f"command line: there is no item {index}; the next free number is {len(items)}.")
    if index == len(items):
        items.append({})


def parse(arguments: Sequence[str]) -> Config:
    """The configuration that command-line arguments describe.

    `--help` and `--print_config` print and raise SystemExit(0). Raises UserError with all errors.
    """
    if {"-h", "--help"} & set(arguments):
        _print_help()
        raise SystemExit(0)
    given = options.pairs([word for word in arguments if word != "--print_config"], _is_known)
    draft = _Draft()
    for name, text in given:
        if name == "--config":
            located = options.read_file(text, "recipe")
            draft.put((), located.value, located.places)
            draft.source = text
    for name, text in given:
        if name != "--config":
            _put_option(draft, name, text)
    config = _finish(draft)
    if config.model.trust_remote_code and (place := draft.places["model", "trust_remote_code"]) != COMMAND_LINE:
        raise UserError(
            f"{place}: model.trust_remote_code runs code that comes with the model, so it is accepted on the command "
            "line only; remove it here and add --model.trust_remote_code true"
        )
    if "--print_config" in arguments:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def load(path: str | Path) -> Config:
    """The configuration in a run folder's `config.yaml`, checked as strictly as a recipe."""
    located = options.read_file(str(path), "recipe")
    return _finish(_Draft(located.value, located.places, str(path)))


def to_yaml(config: Config) -> str:
    """All keys with their values; `load` reads it back to an equal value."""
    return dump_yaml(dataclasses.asdict(config))


def _print_help() -> None:
    """All options, in groups, 80 columns wide."""
    parser = argparse.ArgumentParser(usage=USAGE, description=DESCRIPTION)
    parser.add_argument("--config", metavar="FILE", help="A recipe in YAML; can be given several times.")
    parser.add_argument("--print_config", action="store_true", help="Print the resulting recipe as YAML and exit.")
    options.add(parser, Config)
    options.add(parser, SourceConfig, "data.train.N.")
    parser.print_help()


def _is_known(option: str) -> bool:
    """All words after an unknown option belong to it: another trainer may take a list there."""
    return option == "--config" or kind_at(Config, way_of(option.removeprefix("--"))) is not None


def _put_option(draft: _Draft, name: str, text: str) -> None:
    way = way_of(name.removeprefix("--"))
    kind = kind_at(Config, way)
    if kind is None:
        draft.unknown.append(Fault(way, f"unknown option {name}", unknown=True, value=text))
        return
    located = options.located(text, kind, name)
    places = dict.fromkeys(((*way, *inner) for inner in located.places), COMMAND_LINE)
    draft.put(way, located.value if located.value != {} else None, places)  # {} would be merged, not replace


def _finish(draft: _Draft) -> Config:
    """Check and build the configuration. Raises UserError with the errors of all files and options."""
    config, faults = checked(Config, draft.tree)
    places = {**draft.places, (): draft.source}
    lines = [*_messages(faults, places, dotted), *_messages(draft.unknown, {(): COMMAND_LINE}, _option)]
    invalid = [fault.way for fault in (*faults, *draft.unknown)]
    invalid += [way_of(meant) for fault in (*faults, *draft.unknown) if (meant := _meant(fault))]
    for key, message in problems(config):
        if not _may_follow(way_of(key), message, invalid):
            lines.append((_place(places, way_of(key)), f"{key}: {message}."))
    if lines:
        order = [*draft.places.values(), COMMAND_LINE, draft.source]
        lines.sort(key=lambda line: order.index(line[0]))
        raise UserError("\n".join(dict.fromkeys(f"{place}: {message}" for place, message in lines)))
    return config


def _messages(
    faults: Sequence[Fault], places: Mapping[Way, str], spell: Callable[[Way], str]
) -> Iterator[tuple[str, str]]:
    """(place, message) of each fault, with a suggestion."""
    meant = {_meant(fault) for fault in faults}
    for fault in faults:
        if fault.missing and dotted(fault.way) in meant:
            continue  # given, but misspelled
        suggestion = about_key(fault.way, fault.value, spell) if fault.unknown else about_value(fault.way, fault.value)
        yield _place(places, fault.way), f"{fault.message}{suggestion}"


def _meant(fault: Fault) -> str:
    return meant_key(fault.way).partition(":")[0] if fault.unknown else ""


def _option(way: Way) -> str:
    return "--" + ".".join(map(str, way))


def _may_follow(way: Way, message: str, invalid: Sequence[Way]) -> bool:
    """Whether a problem may only be a consequence of an invalid value, which was left out."""
    above_or_below = (way[: len(other)] == other[: len(way)] for other in invalid)
    return any(above_or_below) or any(dotted(other) in message for other in invalid)
