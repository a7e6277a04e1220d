"""Validates configurations with pydantic: dataclasses in, all problems as messages for the user out."""

from __future__ import annotations

import copy
import dataclasses
import json
import types
from collections.abc import Hashable
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from zerotune.common.errors import UserError
from zerotune.common.yaml_lines import KeyPath, dotted

Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)  # for the outermost dataclass
UNKNOWN = "unexpected_keyword_argument"

_Kind = TypeVar("_Kind")
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


@dataclasses.dataclass(frozen=True)
class ConfigProblem:
    """A problem of one key. unknown, missing: the key itself is the problem. value: the given value."""

    key: KeyPath
    message: str
    unknown: bool = False
    missing: bool = False
    value: Any = None


def checked(kind: type[_Kind], values: dict[str, Any]) -> tuple[_Kind, list[ConfigProblem]]:
    """The configuration of type `kind` with these plain values, and all problems of the values.

    Strict: no null where None is not allowed, no quoted numbers, no NaN or infinity; but null in place of a list or a
    mapping is an empty one. In the result an invalid value is replaced by its default, a missing one by some value, so
    that the rest can still be checked. Raises UserError where that is not possible.
    """
    adapter = _adapter(cast(Hashable, kind))
    values = copy.deepcopy(values)
    problems: dict[KeyPath, ConfigProblem] = {}
    filled: set[KeyPath] = set()  # missing values that were replaced; if that fails too, the section is removed
    while True:
        try:  # as JSON, since in Python's own types a strict pydantic takes no mapping for a dataclass
            return adapter.validate_json(_json(values), strict=True), list(problems.values())
        except ValidationError as error:
            for found in error.errors(include_url=False):
                key = found["loc"] if found["type"] == UNKNOWN else _key_of(kind, found["loc"])
                if not key:
                    raise UserError(
                        f"these values cannot be read: {found['msg'].removeprefix('Invalid JSON: ')}"
                    ) from None
                at = kind_at(kind, key)
                if not (found["input"] is None and get_origin(at) in (list, dict)):
                    problems.setdefault(key, _problem(key, at, dict(found)))
                if key in filled and len(key) == 1:
                    raise UserError("\n".join(f"{problem.message}." for problem in problems.values())) from None
                with suppress(LookupError, TypeError):  # its section may have been removed already
                    if found["type"] != "missing" or key in filled:
                        _remove(values, key[:-1] if key in filled else key)
                    else:
                        filled.add(key)
                        value_at(values, key[:-1])[key[-1]] = get_args(at)[0] if get_origin(at) is Literal else "?"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _json(values: dict[str, Any]) -> bytes:
    try:
        return json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        part = error.object[max(error.start - 20, 0) : error.end + 20]
        raise UserError(f"a value is not UTF-8 text: {part!r}.") from None


def _key_of(kind: Any, location: tuple[str | int, ...]) -> KeyPath:
    """The part of pydantic's location that is a key: without the members of unions, which it appends."""
    key: KeyPath = ()
    for step in location:
        if kind_at(kind, (*key, step)) is None:
            break
        key = (*key, step)
    return key


def _problem(key: KeyPath, kind: Any, found: dict[str, Any]) -> ConfigProblem:
    name, value = dotted(key), found["input"]
    if found["type"] == UNKNOWN:
        return ConfigProblem(key, f"unknown key {name}", unknown=True, value=value)
    if found["type"] == "missing":
        return ConfigProblem(key, f"{name} is missing: {describe(kind)}", missing=True)
    if found["type"] == "value_error":  # raised by a validator of the configuration
        return ConfigProblem(key, f"{name}: {found['ctx']['error']}", value=value)
    if found["type"].startswith(("greater_than", "less_than")):
        return ConfigProblem(
            key, f"{name}: {found['msg'].replace('Input should', 'must')}, not {shown(value)}", value=value
        )
    return ConfigProblem(key, f"{name}: expected {describe(kind)}, got {shown(value)}", value=value)


def _remove(values: dict[str, Any], key: KeyPath) -> None:
    """Remove the value of a key; of a list, the whole list."""
    while isinstance(key[-1], int):
        key = key[:-1]
    del value_at(values, key[:-1])[key[-1]]


def is_section(kind: Any) -> bool:
    """Whether a type is a section of the configuration: a dataclass."""
    return dataclasses.is_dataclass(kind)


@cache
def fields_of(kind: Any) -> dict[str, Any]:
    """Field name -> type of a section, without its range."""
    return get_type_hints(kind)


def kind_at(kind: Any, key: KeyPath) -> Any:
    """The type of the value at a key below `kind`, or None if there is none; lists have indices, dicts any keys."""
    for step in key:
        if isinstance(step, int) and get_origin(kind) in (list, tuple):
            kind = get_args(kind)[0]
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif isinstance(step, str) and is_section(kind):
            kind = fields_of(kind).get(step)
        else:
            return None
    return kind


def value_at(values: Any, key: KeyPath) -> Any:
    """The value of a key. Raises LookupError or TypeError if there is none."""
    for step in key:
        values = values[step]
    return values


def leaf_keys(kind: Any, key: KeyPath = ()) -> list[KeyPath]:
    """The keys of all single values below a section."""
    if not is_section(kind):
        return [key]
    return [leaf for name, inner in fields_of(kind).items() for leaf in leaf_keys(inner, (*key, name))]


def is_union(kind: Any) -> bool:
    """Whether `kind` is X | Y."""
    return isinstance(kind, types.UnionType) or get_origin(kind) is Union


def describe(kind: Any) -> str:
    """`kind` in words: "a number or null", "one of cosine, linear, constant"."""
    if is_union(kind):
        return " or ".join(describe(option) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) in (list, tuple):
        inner = get_args(kind)[0]
        return "a list of " + ("mappings, each with " + ", ".join(fields_of(inner)) if is_section(inner) else "words")
    if get_origin(kind) is dict or is_section(kind):
        return "a mapping of keys to values"
    return _WORDS[kind]


def shown(value: Any) -> str:
    """A value for a message, truncated if it is long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
