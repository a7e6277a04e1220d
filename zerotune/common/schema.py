"""What a configuration accepts: dataclasses whose values pydantic checks, and what it refuses in a user's words."""

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
from zerotune.common.yaml_lines import Way, dotted

Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)  # for the outermost dataclass
UNKNOWN = "unexpected_keyword_argument"

_Kind = TypeVar("_Kind")
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong at `way`; `unknown` or `missing` when it is the key itself. value: what stands there."""

    way: Way
    message: str
    unknown: bool = False
    missing: bool = False
    value: Any = None


def checked(kind: type[_Kind], values: dict[str, Any]) -> tuple[_Kind, list[Fault]]:
    """The configuration that plain `values` describe, and everything in them that `kind` does not accept.

    Strict: no null where None is not allowed, no quoted numbers, no NaN or infinity; but null in place of a list or a
    mapping is an empty one. What is wrong has its default in the result, and a required text some value, so that the
    rest can still be checked. Raises UserError where that is not possible.
    """
    adapter = _adapter(cast(Hashable, kind))
    values = copy.deepcopy(values)
    faults: dict[Way, Fault] = {}
    filled: set[Way] = set()  # where a value stands for a missing one; if it is wrong too, its section is left out
    while True:
        try:  # as JSON, since in Python's own types a strict pydantic takes no mapping for a dataclass
            return adapter.validate_json(_json(values), strict=True), list(faults.values())
        except ValidationError as error:
            for found in error.errors(include_url=False):
                way = found["loc"] if found["type"] == UNKNOWN else _known_part(kind, found["loc"])
                if not way:
                    raise UserError(
                        f"these values cannot be read: {found['msg'].removeprefix('Invalid JSON: ')}"
                    ) from None
                at = kind_at(kind, way)
                if not (found["input"] is None and get_origin(at) in (list, dict)):
                    faults.setdefault(way, _fault(way, at, dict(found)))
                if way in filled and len(way) == 1:
                    raise UserError("\n".join(f"{fault.message}." for fault in faults.values())) from None
                with suppress(LookupError, TypeError):  # what it stands in may have been left out already
                    if found["type"] != "missing" or way in filled:
                        _leave_out(values, way[:-1] if way in filled else way)
                    else:
                        filled.add(way)
                        value_at(values, way[:-1])[way[-1]] = get_args(at)[0] if get_origin(at) is Literal else "?"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _json(values: dict[str, Any]) -> bytes:
    try:
        return json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        part = error.object[max(error.start - 20, 0) : error.end + 20]
        raise UserError(f"a value is not UTF-8 text: {part!r}.") from None


def _known_part(kind: Any, location: tuple[str | int, ...]) -> Way:
    """pydantic's location without what it adds: which option of a union it is about, and where in it."""
    way: Way = ()
    for step in location:
        if kind_at(kind, (*way, step)) is None:
            break
        way = (*way, step)
    return way


def _fault(way: Way, kind: Any, found: dict[str, Any]) -> Fault:
    name, value = dotted(way), found["input"]
    if found["type"] == UNKNOWN:
        return Fault(way, f"unknown key {name}", unknown=True, value=value)
    if found["type"] == "missing":
        return Fault(way, f"{name} is missing: {describe(kind)}", missing=True)
    if found["type"] == "value_error":  # of a validator of ours
        return Fault(way, f"{name}: {found['ctx']['error']}", value=value)
    if found["type"].startswith(("greater_than", "less_than")):
        return Fault(way, f"{name}: {found['msg'].replace('Input should', 'must')}, not {shown(value)}", value=value)
    return Fault(way, f"{name}: expected {describe(kind)}, got {shown(value)}", value=value)


def _leave_out(values: dict[str, Any], way: Way) -> None:
    """Removes what stands at `way`, and a list with a wrong item as a whole."""
    while isinstance(way[-1], int):
        way = way[:-1]
    del value_at(values, way[:-1])[way[-1]]


def is_section(kind: Any) -> bool:
    """Whether `kind` is a dataclass of the configuration."""
    return dataclasses.is_dataclass(kind)


@cache
def fields_of(kind: Any) -> dict[str, Any]:
    """Field name -> type of a configuration dataclass, without its range."""
    return get_type_hints(kind)


def kind_at(kind: Any, way: Way) -> Any:
    """The type at `way` below `kind`, or None if there is nothing; a list is entered by index, a dict by any key."""
    for step in way:
        if isinstance(step, int) and get_origin(kind) in (list, tuple):
            kind = get_args(kind)[0]
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif isinstance(step, str) and is_section(kind):
            kind = fields_of(kind).get(step)
        else:
            return None
    return kind


def value_at(values: Any, way: Way) -> Any:
    """What stands at `way` in plain values. Raises LookupError or TypeError where nothing does."""
    for step in way:
        values = values[step]
    return values


def leaf_ways(kind: Any, way: Way = ()) -> list[Way]:
    """The way to every leaf below a configuration dataclass."""
    if not is_section(kind):
        return [way]
    return [leaf for name, inner in fields_of(kind).items() for leaf in leaf_ways(inner, (*way, name))]


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
    """A value as a message shows it, cut when long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
