"""What the commands share that take a recipe and options of their own, such as `check` and `search`."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from train.command_words import refuse_slips, with_recipes
from train.config import Config
from zerotune.common.errors import UserError
from zerotune.common.mask_secrets import hide_secrets, printable

INDENT = 24  # of the helps of options, in columns


@dataclass(frozen=True)
class Option:
    """An option of a command, besides the keys of the recipe. takes: how many values."""

    help: str
    default: str = ""
    takes: Literal["one", "several", "none"] = "one"


def run_command(arguments: Sequence[str] | None, usage: str, work: Callable[[list[str]], int]) -> int:
    """Do the work of a command; returns the exit code. arguments: None for those of the process.

    `--help` prints the usage and ends the process. A UserError becomes a message.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if {"-h", "--help"} & set(words):
        sys.stdout.write(usage)
        raise SystemExit(0)
    hide_secrets()
    try:
        return work(words)
    except UserError as error:
        sys.stderr.write(printable(f"{error}\n"))
        return error.exit_code


def own_options(
    words: Sequence[str], own: Mapping[str, Option], also: Sequence[str] = ()
) -> tuple[dict[str, str], tuple[str, ...]]:
    """(value of each own option, the words that describe the recipe). Several values are joined by spaces, and an
    option that takes none is "true" if it is given, else "".

    also: names of further options that may have been meant. Raises UserError: a missing value, a misspelled option,
    no recipe.
    """
    values, others, rest = {name: option.default for name, option in own.items()}, list[str](), list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name not in own:
            others.append(word)
        elif own[name].takes == "none":
            if equals:
                raise UserError(f"{name} takes no value: {own[name].help}")
            values[name] = "true"
        else:
            given = [value] if equals else []
            while rest and not rest[0].startswith("--") and (not given or own[name].takes == "several"):
                given.append(rest.pop(0))
            values[name] = " ".join(given)
            if not values[name]:
                raise UserError(f"{name} needs a value: {own[name].help}")
    refuse_slips(others, Config, [*also, *(name.removeprefix("--") for name in own)])
    recipe = with_recipes(others)
    if "--config" not in {word.partition("=")[0] for word in recipe}:
        raise UserError("no recipe: give a file, or a name that `zerotune recipes` lists")
    return values, tuple(recipe)


def whole_number(name: str, text: str, least: int = 1) -> int:
    """The value of an option. Raises UserError."""
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise UserError(f"{name} {text}: must be a whole number from {least} on")
    return int(text)


def refuse_launcher(what: str) -> None:
    """Raise UserError in a process of a launcher. what: the command is, such as `a search`."""
    if "RANK" in os.environ:
        raise UserError(f"a launcher has started this command (RANK is set): start {what} without one")


def usage_text(
    head: Sequence[str], about: str, own: Mapping[str, Option], tail: Mapping[str, str] | None = None
) -> str:
    """The help, in 80 columns. head: the first lines. about: what the command does. tail: further options."""
    defaults = {name: f" (default: {option.default})" for name, option in own.items() if option.default}
    helps = {name: option.help + defaults.get(name, "") for name, option in own.items()}
    helps |= {"--KEY VALUE": "any key of the recipe, as in training (zerotune train --help)", **(tail or {})}
    lines = [
        textwrap.fill(text, 80, initial_indent=f"  {name:<{INDENT - 2}}", subsequent_indent=" " * INDENT)
        for name, text in helps.items()
    ]
    return "\n".join([*head, "", textwrap.fill(about, 80), "", *lines, ""])
