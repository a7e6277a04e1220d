"""The command line of a configuration of dataclasses: `--key value`, YAML files, and `--help` from the docstrings."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from docstring_parser import parse as parse_docstring

from zerotune import shipped
from zerotune.common.errors import UserError
from zerotune.common.files import nearest
from zerotune.common.schema import fields_of, is_section, is_union, shown
from zerotune.common.yaml_lines import Located, parse_yaml, read_yaml

LONGEST_NAMES = 66  # characters of a list of choices that fits into 80 columns


def pairs(words: Sequence[str], takes_one: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Split a command line into (--name, text). `--name=text` is `--name text`.

    takes_one: whether an option takes one word; others take all words up to the next option.
    """
    found: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(
                f"command line: {word!r} belongs to no option; quote values with spaces, separate lists by commas."
            )
        name, equals, text = word.partition("=")
        given: list[str] = [text] if equals else []
        while rest and not rest[0].startswith("--") and not (given and (equals or takes_one(name))):
            given.append(rest.pop(0))
        if not given and takes_one(name):
            raise UserError(f"command line: {name} needs a value.")
        found.append((name, " ".join(given)))
    return found


def located(text: str, kind: Any, name: str) -> Located:
    """The value of an option: its text if `kind` is text, else the text read as YAML."""
    of_union = is_union(kind) and str in get_args(kind) and text != "null" and not text.startswith("[")
    if kind is str or get_origin(kind) is Literal or of_union:
        return Located(text, {(): ""})
    return parse_yaml(text, f"command line: {name}")


def read_file(file: str, what: str) -> Located:
    """Read a YAML file of options. what: the word for it in messages. Raises UserError."""
    path = Path(file)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{file}: is not a regular file; every rank reads the {what}, so save it as a file")
    if not path.is_file():
        raise UserError(f"{file}: there is no such {what}{nearest(path) or '.'}")
    found = read_yaml(path)
    if not isinstance(found.value, dict):
        raise UserError(f"{file}:1: a {what} is a mapping of keys to values, not {shown(found.value)}.")
    return Located(shipped.with_examples(found.value, path), found.places)


def add(parser: argparse.ArgumentParser, kind: Any, prefix: str = "", takes: Mapping[str, str] | None = None) -> None:
    """Add every option of a section with its help, value and default; sections below it become groups.

    takes: the shown value of options whose type does not describe it.
    """
    docstring = parse_docstring(kind.__doc__)
    help_of = {entry.arg_name: entry.description for entry in docstring.params}
    group = parser.add_argument_group((docstring.short_description or "").rstrip("."))
    for field in dataclasses.fields(kind):
        inner = fields_of(kind)[field.name]
        if not is_section(inner):
            text = f"{help_of[field.name]}{_default(field)}".replace("%", "%%")
            metavar = (takes or {}).get(field.name) or _metavar(inner)
            group.add_argument(f"--{prefix}{field.name}", metavar=metavar, help=text)
    for name, inner in fields_of(kind).items():
        if is_section(inner):
            add(parser, inner, f"{prefix}{name}.")


def _metavar(kind: Any) -> str:
    if is_union(kind):
        return "|".join(dict.fromkeys(_metavar(option) for option in get_args(kind) if option is not type(None)))
    if get_origin(kind) is Literal:
        names = "{" + ",".join(get_args(kind)) + "}"
        return names if len(names) <= LONGEST_NAMES else "NAME"  # then the help of the key lists them
    words = {str: "TEXT", int: "N", float: "NUMBER", bool: "{true,false}", dict: "YAML", list: "YAML"}
    return words[get_origin(kind) or kind]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return " (required)" if field.default_factory is dataclasses.MISSING else ""
    if field.default is None or field.default == "":
        return ""
    shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default).strip("()")
    return f" (default: {shown})"
