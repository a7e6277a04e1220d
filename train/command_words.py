"""Finds a launcher's options and names of recipes in a command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from zerotune import shipped
from zerotune.common.errors import UserError
from zerotune.common.files import nearest
from zerotune.common.suggest import did_you_mean
from zerotune.common.suggest import nearest as nearest_word

NUMBERS = ("num_processes", "num_machines", "machine_rank", "main_process_port")
# Options of `accelerate launch`, each with a value. `accelerate` is its config_file, by a name as in slurm/job.sh.
OPTIONS = ("accelerate", "main_process_ip", *NUMBERS)


def split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(the launcher's options, the other words)."""
    options: dict[str, str] = {}
    others, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name.removeprefix("--") not in OPTIONS or not name.startswith("--"):
            others.append(word)
            continue
        if not equals:
            value = rest.pop(0) if rest else ""
        name = name.removeprefix("--")
        if not value:
            raise UserError(f"--{name} needs a value")
        least = 1 if name.startswith("num_") else 0  # port 0: any that is free
        if name in NUMBERS and (not value.isdecimal() or int(value) < least):
            raise UserError(f"--{name} {value}: must be a whole number from {least} on")
        options[name] = value
    return options, others


def refuse_slips(words: Sequence[str], settings: type, options: Sequence[str] = OPTIONS) -> None:
    """Raise UserError for an option in a wrong spelling: the programs know none of these and could not say what was
    meant. settings: the dataclass of the recipe, whose keys are options too.
    """
    keys = {field.name for field in dataclasses.fields(settings)}
    for name in (word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")):
        meant = nearest_word(name, [*options, *keys], cutoff=0.75)
        if meant in options and name not in (meant, *keys):
            raise UserError(f"unknown option --{name}; did you mean --{meant}?")


def with_recipes(words: Sequence[str], within: str = "") -> list[str]:
    """The words for train/main.py and eval/main.py: names of recipes, in front or after --config, become --config FILE.

    within: a folder of recipes that can be omitted in names.
    """
    made, rest = [], list(words)
    while rest and not rest[0].startswith("-"):
        made += ["--config", recipe_file(rest.pop(0), within)]
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name == "--config" and (equals or rest):
            made += [name, recipe_file(value if equals else rest.pop(0), within)]
        else:
            made.append(word)
    return made


def recipe_file(word: str, within: str = "") -> str:
    """The file of a recipe's name or path. A folder of the same name does not hide the recipe."""
    if Path(word).exists() and not Path(word).is_dir():
        return word
    if found := shipped.find(f"{within}{word}", shipped.RECIPES) or shipped.find(word, shipped.RECIPES):
        return str(found)
    known = [name.removeprefix(within) for name in shipped.names(shipped.RECIPES)]
    near = did_you_mean(word.removeprefix("recipes/").removesuffix(".yaml"), known) or nearest(Path(word))
    raise UserError(f"{word}: there is no such recipe{near or '; `zerotune recipes` lists all names'}")
