"""Suggestions for unknown keys and invalid values. Better no suggestion than a misleading one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args, get_origin

from train.config import Config
from train.other_trainers import COUNTERPARTS, NO_COUNTERPART, NOTES, SOURCE_KEYS, VALUES
from zerotune.common.schema import is_section, kind_at, leaf_keys
from zerotune.common.suggest import SLIP, nearest
from zerotune.common.yaml_lines import KeyPath, dotted

ANYWHERE = 0.9  # similarity from which a key of another section counts as a typing error


def meant_key(key: KeyPath) -> str:
    """The key that was probably meant by an unknown one: `section.key` or `section.key: value`; empty if uncertain."""
    last = str(key[-1])
    if len(key) > 2 and isinstance(key[2], int):  # a field of a source or of a reward component
        own = [dotted(leaf) for leaf in leaf_keys(kind_at(Config, key[:-1]))]
        theirs = SOURCE_KEYS.get(last, "") if key[0] == "data" else ""
        name = theirs if theirs in own else nearest(last, own, SLIP)
        return f"{dotted(key[:-1])}.{name}" if name else ""
    if last in COUNTERPARTS:
        return COUNTERPARTS[last]
    if last in NO_COUNTERPART:
        return ""
    keys = [dotted(leaf) for leaf in leaf_keys(Config)]
    return _same_last(dotted(key), keys) or _alike_in_section(key, keys) or _alike_anywhere(last, keys)


def _same_last(name: str, keys: Sequence[str]) -> str:
    """The key with the same last part, in another section or with a mistyped section."""
    last = name.rpartition(".")[2]
    same = [key for key in keys if key.rpartition(".")[2] == last]
    return same[0] if len(same) == 1 else nearest(name, same, SLIP) if name != last else ""


def _alike_in_section(key: KeyPath, keys: Sequence[str]) -> str:
    section = f"{dotted(key[:-1])}."
    own = [name.removeprefix(section) for name in keys if len(key) > 1 and name.startswith(section)]
    found = nearest(str(key[-1]), own, SLIP)
    return section + found if found else ""


def _alike_anywhere(last: str, keys: Sequence[str]) -> str:
    lasts = [key.rpartition(".")[2] for key in keys]
    found = nearest(last, lasts, ANYWHERE)
    return keys[lasts.index(found)] if lasts.count(found) == 1 else ""


def about_key(key: KeyPath, value: object, spell: Callable[[KeyPath], str]) -> str:
    """The end of the message `unknown key NAME`: a suggestion, why there is no such key, or where all are listed.

    value: the given value. spell: how to write a key, in a recipe or on the command line.
    """
    meant, _, ours = meant_key(key).partition(": ")
    if meant:
        ours = ours or _our_value(meant, value)
        shown = spell(parse_key(meant)) + ((": " if spell is dotted else " ") + ours if ours else "")
        note = f" ({NOTES[meant]})" if meant in NOTES and key[-1] in COUNTERPARTS and not ours else ""
        return f"; did you mean {shown}{note}?"
    reason = NO_COUNTERPART.get(str(key[-1]))
    return f": {reason}." if reason else "; --help lists all keys."


def about_value(key: KeyPath, value: object) -> str:
    """The end of the message about an invalid value: a suggestion for another trainer's value, else a full stop."""
    if is_section(kind_at(Config, key)) and isinstance(value, str):
        ours = COUNTERPARTS.get(dotted(key), "")
    else:
        ours = _our_value(dotted(key), value)
    return f"; did you mean {ours}?" if ours else "."


def _our_value(name: str, value: object) -> str:
    """The choice that matches another trainer's value; empty if unknown."""
    key, text = parse_key(name), str(value).lower()
    kind = kind_at(Config, key)
    if get_origin(kind) is not Literal:
        return ""
    is_format = key[-1] == "format"
    theirs = VALUES.get("format" if is_format else name, {})
    words = [text, re.split("[.:]", text)[0]] if is_format else [text]  # axolotl's alpaca.load_concise
    known = {**theirs, **{name: name for name in get_args(kind)}}
    return next((known[word] for word in words if word in known), "")


def parse_key(name: str) -> KeyPath:
    """data.train.0.path or data.train[0].path -> ("data", "train", 0, "path")"""
    parts = re.sub(r"\[([0-9]+)\]", r".\1", name).split(".")
    return tuple(int(part) if re.fullmatch("[0-9]+", part) else part for part in parts)
