"""Recipes: YAML files and dotted command-line options become one checked `Config`.

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

from train.config import Config, SourceConfig
from train.fingerprint import flat, unused
from train.recipe_checks import problems
from train.registry import OBJECTIVES
from train.suggest import about_key, about_value, meant_key, parse_key
from zerotune.common import command_line
from zerotune.common.console import say
from zerotune.common.errors import UserError
from zerotune.common.schema import ConfigProblem, checked, kind_at
from zerotune.common.yaml_lines import KeyPath, dotted, dump_yaml

USAGE = """\
accelerate launch train/main.py --config recipes/NAME.yaml
       [--config recipes/OTHER.yaml ...] [--optim.learning_rate 1e-4 ...]"""
DESCRIPTION = "Later recipes override earlier ones, options override recipes. `null` unsets a key."
COMMAND_LINE = "command line"
FROM_OUTSIDE = (
    "If a package of your own has registered what is unknown here, import that package, then call the main function of "
    'this command (docs/architecture.md, "From outside").'
)


@dataclasses.dataclass
class _Draft:
    """A configuration that is being read: plain values, the place of each, and the name of the whole in messages."""

    tree: dict[str, Any] = dataclasses.field(default_factory=dict)
    places: dict[KeyPath, str] = dataclasses.field(default_factory=dict)
    source: str = COMMAND_LINE
    unknown: list[ConfigProblem] = dataclasses.field(default_factory=list)  # on the command line

    def put(self, key: KeyPath, value: Any, places: Mapping[KeyPath, str]) -> None:
        """Set the value of a key: mappings are merged, anything else replaces the earlier value."""
        if isinstance(value, dict) and not (key and isinstance(key[-1], int)):
            for name, inner in value.items():
                self.put((*key, name), inner, places)
            return
        spot: Any = self.tree
        replaced = key
        for depth, (step, following) in enumerate(pairwise(key), 1):
            room: Any = [] if isinstance(following, int) else {}
            if isinstance(step, int):
                _make_room(spot, step)
            else:
                spot.setdefault(step, room)
            if not isinstance(spot[step], type(room)):
                spot[step], replaced = room, key[:depth]
            spot = spot[step]
        if isinstance(key[-1], int):
            _make_room(spot, key[-1])
        spot[key[-1]] = value
        self.places = {k: place for k, place in self.places.items() if k[: len(replaced)] != replaced}
        self.places |= {k: place for k, place in places.items() if k[: len(key)] == key}


def _place(places: Mapping[KeyPath, str], key: KeyPath) -> str:
    """The place of a key, else of a value below it, else of its section."""
    if key in places:
        return places[key]
    inside = next((place for inner, place in places.items() if inner[: len(key)] == key), None)
    return inside or _place(places, key[:-1])


def _make_room(items: list[Any], index: int) -> None:
    if index > len(items):
        raise UserError(f"command line: there is no item {index}; the next free number is {len(items)}.")
    if index == len(items):
        items.append({})


def parse(arguments: Sequence[str], over: Sequence[tuple[str, Any, str]] = (), warns: bool = False) -> Config:
    """Parse command-line arguments. over: (key, value, place) that win over all of them. warns: of unused options.

    `--help` and `--print_config` print and raise SystemExit(0). Raises UserError with all problems: place, key, fix.
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
    for key, value, place in over:
        draft.put(parse_key(key), value, {parse_key(key): place})
    config = _finish(draft)
    if config.model.trust_remote_code and (place := draft.places["model", "trust_remote_code"]) != COMMAND_LINE:
        raise UserError(
            f"{place}: model.trust_remote_code runs code that comes with the model, so it is accepted on the command "
            "line only; remove it here and add --model.trust_remote_code true"
        )
    for line in _without_effect(config, draft.places) if warns else ():
        say(line)
    if "--print_config" in arguments:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    return config


def _without_effect(config: Config, places: Mapping[KeyPath, str]) -> Iterator[str]:
    """A warning for each option of the command line that the run does not use; in a file it may be for other runs."""
    prefixes = unused(flat(config))
    for key, place in places.items():
        if place == COMMAND_LINE and f"{dotted(key)}.".startswith(prefixes):
            why = f"objective {config.objective}, tuning.kind {config.tuning.kind}"
            yield f"WARNING {_option(key)} has no effect: this run does not use it ({why})"


def load(path: str | Path) -> Config:
    """The configuration in a run folder's `config.yaml`, checked as strictly as a recipe."""
    located = command_line.read_file(str(path), "recipe")
    try:
        return _finish(_Draft(located.value, located.places, str(path)))
    except UserError as error:
        raise UserError(f"{error}\n{path} is of a run. {FROM_OUTSIDE}") from None


def to_yaml(config: Config) -> str:
    """The whole configuration; `load` reads it back to an equal one.

    A section of another objective is left out where it has its defaults: the program that reads may not know it.
    """
    values, default = dataclasses.asdict(config), Config()
    for name in OBJECTIVES:
        if name in values and name != config.objective and getattr(config, name) == getattr(default, name):
            del values[name]
    return dump_yaml(values)


def _print_help() -> None:
    """Every option, in groups; made for 80 columns."""
    parser = argparse.ArgumentParser(usage=USAGE, description=DESCRIPTION)
    parser.add_argument("--config", metavar="FILE", help="A recipe in YAML; can be given several times.")
    parser.add_argument("--print_config", action="store_true", help="Print the resulting recipe as YAML and exit.")
    command_line.add(parser, Config)
    command_line.add(parser, SourceConfig, "data.train.N.")
    parser.print_help()


def _is_known(option: str) -> bool:
    """An unknown option takes all following words: in another trainer it may be a list."""
    return option == "--config" or kind_at(Config, parse_key(option.removeprefix("--"))) is not None


def _put_option(draft: _Draft, name: str, text: str) -> None:
    key = parse_key(name.removeprefix("--"))
    kind = kind_at(Config, key)
    if kind is None:
        draft.unknown.append(ConfigProblem(key, f"unknown option {name}", unknown=True, value=text))
        return
    located = command_line.located(text, kind, name)
    places = dict.fromkeys(((*key, *inner) for inner in located.places), COMMAND_LINE)
    draft.put(key, located.value if located.value != {} else None, places)  # empty, it would only be merged


def _finish(draft: _Draft) -> Config:
    """Build and check the configuration. Raises UserError with all problems of all files and options."""
    config, invalid = checked(Config, draft.tree)
    places = {**draft.places, (): draft.source}
    config = _without_stand_in(config, places)
    lines = [*_messages(invalid, places, dotted), *_messages(draft.unknown, {(): COMMAND_LINE}, _option)]
    uncertain = [problem.key for problem in (*invalid, *draft.unknown)]
    uncertain += [parse_key(meant) for problem in (*invalid, *draft.unknown) if (meant := _meant(problem))]
    for name, message in problems(config):
        if not _follows(parse_key(name), message, uncertain):
            lines.append((_place(places, parse_key(name)), f"{name}: {message}."))
    if lines:
        order = [*draft.places.values(), COMMAND_LINE, draft.source]
        lines.sort(key=lambda line: order.index(line[0]))
        raise UserError("\n".join(dict.fromkeys(f"{place}: {message}" for place, message in lines)))
    return config


def _without_stand_in(config: Config, places: Mapping[KeyPath, str]) -> Config:
    """Without the path of a recipe with random weights (cpu.yaml), if another recipe starts a new model."""
    model = config.model
    if not model.family or model.init != "random" or places.get(("model", "path")) == COMMAND_LINE:
        return config
    return dataclasses.replace(config, model=dataclasses.replace(model, path=""))


def _messages(
    found: Sequence[ConfigProblem], places: Mapping[KeyPath, str], spell: Callable[[KeyPath], str]
) -> Iterator[tuple[str, str]]:
    """(place, message) of each problem, with a suggestion."""
    meant = {_meant(problem) for problem in found}
    for problem in found:
        key, value = problem.key, problem.value
        if problem.missing and dotted(key) in meant:
            continue  # it is there under another name
        fix = about_key(key, value, spell) if problem.unknown else about_value(key, value)
        yield _place(places, key), f"{problem.message}{fix}"


def _meant(problem: ConfigProblem) -> str:
    return meant_key(problem.key).partition(":")[0] if problem.unknown else ""


def _option(key: KeyPath) -> str:
    return "--" + ".".join(map(str, key))


def _follows(key: KeyPath, message: str, uncertain: Sequence[KeyPath]) -> bool:
    """Whether a problem may only follow from an invalid value, which was replaced by its default."""
    above_or_below = (key[: len(other)] == other[: len(key)] for other in uncertain)
    return any(above_or_below) or any(dotted(other) in message for other in uncertain)
