"""An evaluation's options in a YAML file: the same names, checked as strictly, with file:line in every message."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.suggest import did_you_mean
from eval.yaml_lines import read_yaml

JOINED = ("tasks", "temperatures")  # a list of these is one word, parted by commas


def words_of(path: Path, known: Sequence[str], repeatable: Sequence[str], check: Callable[[str], object]) -> list[str]:
    """The file as words of a command line: `--key=value` each, so that there is one way to understand a value.

    Options of `JOINED` and repeatable ones may be lists, and data also a mapping of tasks to files; null is as if not
    given.
    check: raises UserError for a word that cannot be meant; the file and line are put before it.
    """
    located = read_yaml(path)
    if not isinstance(located.value, dict):
        raise UserError(f"{path}:1: a configuration is a mapping of options to values")
    words = []
    for key, value in located.value.items():
        place = located.places[key,]
        if key not in known:
            raise UserError(f"{place}: unknown option {key}{did_you_mean(key, known) or '; --help lists all'}")
        for text in _texts(place, key, value, repeatable):
            word = f"--{key}={text}"
            try:
                check(word)
            except UserError as error:
                raise UserError(f"{place}: {error}") from error
            words.append(word)
    return words


def _texts(place: str, key: str, value: Any, repeatable: Sequence[str]) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Mapping) and key == "data":
        named = [(task, file) for task, found in value.items() for file in _listed(found)]
        return [f"{task}={_text(place, key, file)}" for task, file in named]
    if isinstance(value, list) and key in repeatable:
        return [_text(place, key, inner) for inner in value]
    if isinstance(value, list) and key in JOINED:
        return [",".join(_text(place, key, inner) for inner in value)]
    return [_text(place, key, value)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(place: str, key: str, value: Any) -> str:
    if isinstance(value, (Mapping, list)) or value is None:
        raise UserError(f"{place}: {key}: one value is expected, not {'a list' if isinstance(value, list) else value}")
    return str(value).lower() if isinstance(value, bool) else str(value)
