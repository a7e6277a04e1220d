"""Suggestions for unknown keys and values. No suggestion is better than a misleading one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args, get_origin

from train.config import Config
from train.foreign_words import COUNTERPARTS, NO_COUNTERPART, NOTES, SOURCE_KEYS, VALUES
from zerotune.common.schema import is_section, kind_at, leaf_ways
from zerotune.common.suggest import SLIP, nearest
from zerotune.common.yaml_lines import Way, dotted

ANYWHERE = 0.9  # least similarity of a key in another section


def meant_key(way: Way) -> str:
    """The key that was probably meant, as `section.key` or `section.key: value`; empty if there is no good match."""
    last = str(way[-1])
    if len(way) > 2 and isinstance(way[2], int):  # a field of a source, or of a reward component
        own = [dotted(leaf) for leaf in leaf_ways(kind_at(Config, way[:-1]))]
        theirs = SOURCE_KEYS.get(last, "") if way[0] == "data" else ""
        name = theirs if theirs in own else nearest(last, own, SLIP)
        return f"{dotted(way[:-1])}.{name}" if name else ""
    if last in COUNTERPARTS:
        return COUNTERPARTS[last]
    if last in NO_COUNTERPART:
        return ""
    keys = [dotted(leaf) for leaf in leaf_ways(Config)]
    return _same_last(dotted(way), keys) or _alike_in_section(way, keys) or _alike_anywhere(last, keys)


def _same_last(name: str, keys: Sequence[str]) -> str:
    """The key with this last part: the section may be wrong or misspelled."""
    last = name.rpartition(".")[2]
    same = [key for key in keys if key.rpartition(".")[2] == last]
    return same[0] if len(same) == 1 else nearest(name, same, SLIP) if name != last else ""


def _alike_in_section(way: Way, keys: Sequence[str]) -> str:
    section = f"{dotted(way[:-1])}."
    own = [key for key in keys if len(way) > 1 and key.startswith(section)]
    found = nearest(str(way[-1]), [key.removeprefix(section) for key in own], SLIP)
    return section + found if found else ""


def _alike_anywhere(last: str, keys: Sequence[str]) -> str:
    lasts = [key.rpartition(".")[2] for key in keys]
    found = nearest(last, lasts, ANYWHERE)
    return keys[lasts.index(found)] if lasts.count(found) == 1 else ""


def about_key(way: Way, value: object, spell: Callable[[Way], str]) -> str:
    """The end of the message `unknown key NAME`: a suggestion, or why there is no such key.

    value: of the key. spell: how a key is written, in a recipe or on the command line.
    """
    key, _, ours = meant_key(way).partition(": ")
    if key:
        ours = ours or _our_value(key, value)
        shown = spell(way_of(key)) + ((": " if spell is dotted else " ") + ours if ours else "")
        note = f" ({NOTES[key]})" if key in NOTES and way[-1] in COUNTERPARTS and not ours else ""
        return f"; did you mean {shown}{note}?"
    reason = NO_COUNTERPART.get(str(way[-1]))
    return f": {reason}." if reason else "; --help lists all keys."


def about_value(way: Way, value: object) -> str:
    """The end of the message about an invalid value: our value for that of another trainer, or a full stop."""
    if is_section(kind_at(Config, way)) and isinstance(value, str):
        ours = COUNTERPARTS.get(dotted(way), "")
    else:
        ours = _our_value(dotted(way), value)
    return f"; did you mean {ours}?" if ours else "."


def _our_value(key: str, value: object) -> str:
    """Our value for another trainer's value of a choice; empty if unknown."""
    way, text = way_of(key), str(value).lower()
    kind = kind_at(Config, way)
    if get_origin(kind) is not Literal:
        return ""
    is_format = way[-1] == "format"
    theirs = VALUES.get("format" if is_format else key, {})
    words = [text, re.split("[.:]", text)[0]] if is_format else [text]  # axolotl's alpaca.load_concise
    known = {**theirs, **{name: name for name in get_args(kind)}}
    return next((known[word] for word in words if word in known), "")


def way_of(key: str) -> Way:
    """data.train.0.path or data.train[0].path -> ("data", "train", 0, "path")"""
    parts = re.sub(r"\[([0-9]+)\]", r".\1", key).split(".")
    return tuple(int(part) if re.fullmatch("[0-9]+", part) else part for part in parts)
