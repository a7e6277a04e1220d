"""Numbers in answers, as people and models write them: signs, thousands separators, currency and percent signs.

Only the digits 0 to 9 count: `\\d` and `int` would take those of every script.
"""

from __future__ import annotations

import re
from fractions import Fraction

TOLERANCE = Fraction(1, 100_000)
LONGEST = 100  # characters of one number; beyond it is noise, and costs time
_NUMBER = re.compile(
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2}(?![0-9A-Za-z]))?|\.[0-9]+"
)
_OVER = re.compile(r" ?/ ?([0-9]{1,20})(?![0-9.])")
_MINUS = re.compile(r"(?:^|[^0-9A-Za-z_)])[-\u2212] ?[$€£¥]?\s?$")


def number(text: str) -> Fraction | None:
    """The number that a short answer states: the first behind its last "=", or else the first; None where none is.

    "$1,234.50" is 1234.5, "50%" is 50, "3/4" is 0.75, "120.0 apples" is 120.
    """
    place = text.rfind("=") + 1
    behind = _first(text, place) if place else None
    return _first(text, 0) if behind is None else behind


def last_number(text: str) -> Fraction | None:
    """The last number of a text."""
    found = list(_NUMBER.finditer(text))
    return _value(text, found[-1]) if found else None


def same_number(one: Fraction | None, other: Fraction | None) -> bool:
    """Whether both are numbers, at most 1e-5 apart."""
    return one is not None and other is not None and abs(one - other) <= TOLERANCE


def _first(text: str, place: int) -> Fraction | None:
    found = _NUMBER.search(text, place)
    return _value(text, found) if found else None


def _value(text: str, found: re.Match[str]) -> Fraction | None:
    if len(found[0]) > LONGEST:
        return None
    value = Fraction(found[0].replace(",", ""))
    over = _OVER.match(text, found.end())
    if over and int(over[1]):
        value /= int(over[1])
    before = text[max(found.start() - 5, 0) : found.start()]
    return -value if _MINUS.search(before) else value
