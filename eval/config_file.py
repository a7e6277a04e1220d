"""An evaluation's options in a YAML file: the same names, checked as strictly, with file:line in every message."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.foreign_words import about
from zerotune import shipped
from zerotune.common.errors import UserError
from zerotune.common.suggest import did_you_mean
from zerotune.common.yaml_lines import read_yaml

HELP = "; --help lists all"
SLIP = 0.7  # how alike two options must be, to be taken for a slip of the finger
JOINED = ("tasks", "temperatures")  # a list of these is one word, parted by commas


def words_of(
    path: Path, known: Sequence[str], repeatable: Sequence[str], check: Callable[[str], object]
) -> tuple[list[str], list[str]]:
    """(the file as words of a command line, everything wrong in it). A word is `--key=value`, so that there is one way
    to understand a value.

    Options of `JOINED` and repeatable ones may be lists, data also a mapping of tasks to files, and filter one of
    columns to values; null is as if not given.
    check: raises UserError for a word that cannot be meant; the file and line are put before it.
    """
    located = read_yaml(path)
    if not isinstance(located.value, dict):
        raise UserError(f"{path}:1: a configuration is a mapping of options to values")
    words, faults = [], []
    for key, value in shipped.with_examples(located.value, path).items():
        place = located.places[key,]
        if key not in known:
            faults.append(f"{place}: unknown option {key}{about(key) or did_you_mean(key, known, SLIP) or HELP}")
            continue
        try:
            texts = _texts(key, value, repeatable)
            for text in texts:
                check(f"--{key}={text}")
                words.append(f"--{key}={text}")
        except UserError as error:
            faults.append(f"{place}: {error}")
    return words, faults


def _texts(key: str, value: Any, repeatable: Sequence[str]) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Mapping) and key == "data":
        named = [(task, file) for task, found in value.items() for file in _listed(found)]
        return [f"{task}={_text(key, file)}" for task, file in named]
    if isinstance(value, Mapping) and key == "filter":
        wanted = [(column, option) for column, found in value.items() for option in _listed(found)]
        return [f"{column}={'null' if option is None else _text(key, option)}" for column, option in wanted]
    if isinstance(value, list) and key in repeatable:
        return [_text(key, inner) for inner in value]
    if isinstance(value, list) and key in JOINED:
        return [",".join(_text(key, inner) for inner in value)]
    return [_text(key, value)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(key: str, value: Any) -> str:
    if isinstance(value, (Mapping, list)) or value is None:
        raise UserError(f"{key}: one value is expected, not {'a list' if isinstance(value, list) else value}")
    return str(value).lower() if isinstance(value, bool) else str(value)
