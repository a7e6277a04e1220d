"""What a type annotation of the configuration accepts, said in a user's words.

Stricter than the parsing library: no null where None is not allowed, no quoted numbers, no NaN or infinity.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from zerotune.common.yaml_lines import Way, dotted

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class Fault:
    """What is wrong at `way`; `unknown` when it is the key itself. value: what stands there. about: the key that is
    missing, where one is.
    """

    way: Way
    message: str
    unknown: bool = False
    value: Any = None
    about: Way = ()


def is_section(kind: Any) -> bool:
    """Whether `kind` is a dataclass of the configuration."""
    return dataclasses.is_dataclass(kind)


@cache
def fields_of(kind: Any) -> dict[str, Any]:
    """Field name -> type of a configuration dataclass."""
    return get_type_hints(kind)


def find_fault(kind: Any, value: Any, way: Way = ()) -> Fault | None:
    """The first place inside `value` that `kind` does not accept: an unknown or missing key, a wrong type or value."""
    return next(iter(clean(kind, value, way)[1]), None)


def clean(kind: Any, value: Any, way: Way = ()) -> tuple[Any, list[Fault]]:
    """(what of `value` can be used, everything in it that `kind` does not accept).

    Without faults the first equals `value`, but for null in place of a list or mapping, which is an empty one. With
    faults it lacks what is wrong; a required key has some value of its type, so that the rest can still be checked.
    """
    faults: list[Fault] = []
    if value is None and get_origin(kind) in (list, dict):
        value = get_origin(kind)()
    if is_section(kind) and isinstance(value, dict):
        return _clean_section(kind, value, way)
    if get_origin(kind) is list and isinstance(value, list):
        items = [clean(get_args(kind)[0], inner, (*way, i)) for i, inner in enumerate(value)]
        return [item for item, _ in items], [fault for _, found in items for fault in found]
    if get_origin(kind) is dict and isinstance(value, dict):
        entries = {key: clean(get_args(kind)[1], inner, (*way, key)) for key, inner in value.items()}
        return {key: item for key, (item, _) in entries.items()}, [f for _, found in entries.values() for f in found]
    if not accepts(kind, value):
        faults.append(Fault(way, f"{dotted(way)}: expected {describe(kind)}, got {shown(value)}", value=value))
    return value, faults


def _clean_section(kind: Any, value: Mapping[str, Any], way: Way) -> tuple[dict[str, Any], list[Fault]]:
    known = fields_of(kind)
    kept: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, inner in value.items():
        if key not in known:
            faults.append(Fault((*way, key), f"unknown key {dotted((*way, key))}", unknown=True, value=inner))
            continue
        item, found = clean(known[key], inner, (*way, key))
        faults += found
        if accepts(known[key], item):
            kept[key] = item
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in kept:
            if field.name not in value:
                missing = f"{dotted((*way, field.name))} is missing: {describe(known[field.name])}"
                faults.append(Fault(way, missing, about=(*way, field.name)))
            kept[field.name] = next(iter(get_args(known[field.name])), "?")
    return kept, faults


def accepts(kind: Any, value: Any) -> bool:
    """Whether `value`, as YAML gives it, is a value of `kind`."""
    if is_union(kind):
        return any(accepts(option, value) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind) and not isinstance(value, bool)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(accepts(get_args(kind)[0], inner) for inner in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(accepts(get_args(kind)[1], inner) for inner in value.values())
    if is_section(kind):
        return isinstance(value, dict) and find_fault(kind, value) is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def describe(kind: Any) -> str:
    """`kind` in words: "a number or null", "one of cosine, linear, constant"."""
    if is_union(kind):
        return " or ".join(describe(option) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is list:
        inner = get_args(kind)[0]
        return "a list of " + ("words" if inner is str else "mappings, each with " + ", ".join(fields_of(inner)))
    if get_origin(kind) is dict or is_section(kind):
        return "a mapping of keys to values"
    return _WORDS[kind]


def is_union(kind: Any) -> bool:
    """Whether `kind` is X | Y."""
    return isinstance(kind, types.UnionType) or get_origin(kind) is Union


def kind_at(kind: Any, way: Way) -> Any:
    """The type at `way` below `kind`, or None if there is nothing; a list is entered by index, a dict by any key."""
    for step in way:
        if isinstance(step, int) and get_origin(kind) is list:
            kind = get_args(kind)[0]
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif isinstance(step, str) and is_section(kind):
            kind = fields_of(kind).get(step)
        else:
            return None
    return kind


def leaf_ways(kind: Any, way: Way = ()) -> list[Way]:
    """The way to every leaf below a configuration dataclass."""
    if not is_section(kind):
        return [way]
    return [leaf for name, inner in fields_of(kind).items() for leaf in leaf_ways(inner, (*way, name))]


def shown(value: Any) -> str:
    """A value as a message shows it, cut when long."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
