"""The command line's `--help`, made by jsonargparse from the docstrings of train/config.py."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from train.config import Config, SourceConfig
from train.value_types import is_union, kind_at

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

USAGE = """\
accelerate launch train/main.py --config recipes/NAME.yaml
       [--config recipes/OTHER.yaml ...] [--optim.learning_rate 1e-4 ...]"""
DESCRIPTION = "Later recipes win over earlier ones, options over recipes. `null` stands for nothing."
SOURCE = "data.train.N"
LONGEST_NAMES = 66  # characters, within 80 columns beside the option


def build_parser() -> ArgumentParser:
    """A parser of the whole `Config`: fills in defaults and builds the dataclasses."""
    import jsonargparse  # here: whoever only loads a module that loads this one need not wait for it

    parser = jsonargparse.ArgumentParser(
        usage=USAGE,
        description=DESCRIPTION,
        exit_on_error=False,
        default_env=False,
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_class_arguments(Config)
    return parser


def print_help() -> None:
    """Every option with its meaning, what it takes and its default, in groups; made for 80 columns."""
    parser = build_parser()
    parser.add_argument("--config", metavar="FILE", help="A recipe in YAML; may be given several times.")
    parser.add_argument("--print_config", action="store_true", help="Show the resolved whole as YAML and exit.")
    parser.add_class_arguments(SourceConfig, SOURCE)
    for action in parser._actions:
        kind = kind_at(Config, tuple(0 if part == "N" else part for part in action.dest.split(".")))
        if action.dest.endswith(".help") or dataclasses.is_dataclass(kind) or action.dest == SOURCE:
            action.help = argparse.SUPPRESS  # jsonargparse's own extras: we read no files but recipes
        elif kind is not None:
            action.option_strings = [name for name in action.option_strings if not name.endswith("+")]
            action.metavar = _metavar(kind)
            action.help = f"{action.help}{_default(action)}".replace("%", "%%")
    parser.print_help()


def _metavar(kind: Any) -> str:
    if is_union(kind):
        return "|".join(dict.fromkeys(_metavar(option) for option in get_args(kind) if option is not type(None)))
    if get_origin(kind) is Literal:
        names = "{" + ",".join(get_args(kind)) + "}"
        return names if len(names) <= LONGEST_NAMES else "NAME"  # then the key's own help lists them
    return {str: "TEXT", int: "N", float: "NUMBER", bool: "{true,false}", dict: "YAML", list: "YAML"}[
        get_origin(kind) or kind
    ]


def _default(action: argparse.Action) -> str:
    if action.required:
        return " (required)"
    if action.default is None or action.default in ("", [], {}):
        return ""
    text = str(action.default).lower() if isinstance(action.default, bool) else action.default
    return f" (default: {text})"
