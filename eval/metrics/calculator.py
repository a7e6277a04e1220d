"""A safe calculator for expressions that a model writes: a small parser over exact fractions.

    sum     := product (("+" | "-") product)*
    product := signed (("*" | "/") signed)*
    signed  := ("+" | "-") signed | value
    value   := number "%"? | "(" sum ")" "%"?

There are no powers, names or calls, with which a short text could cause endless work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Context, Decimal
from fractions import Fraction

LONGEST = 200  # characters; this also limits the digits of a result
DEEPEST = 20  # nested parentheses and signs
DIGITS_SHOWN = 12
_TOKEN = re.compile(r"\s*(?:\$?([0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+\.?[0-9]*|\.[0-9]+)|([-+*/()%×÷−]))")
_SAME = {"×": "*", "÷": "/", "−": "-"}


class _NoValueError(ValueError):
    """The text is not an expression, or its value is undefined."""


def calculate(text: str) -> Fraction | None:
    """The exact value of an arithmetic expression; None if it is invalid, too long, too deep or undefined."""
    if len(text) > LONGEST:
        return None
    try:
        parser = _Parser(_tokens(text))
        value = parser.sum(DEEPEST)
        return value if parser.at_end else None
    except (_NoValueError, ZeroDivisionError):
        return None


def written(value: Fraction) -> str:
    """The number in decimal: integers in full, others rounded to 12 significant digits."""
    if value.denominator == 1:
        return str(value.numerator)
    rounded = Context(prec=DIGITS_SHOWN).divide(Decimal(value.numerator), Decimal(value.denominator))
    return f"{rounded:f}"


def _tokens(text: str) -> list[str]:
    tokens, end = [], 0
    text = text.rstrip()
    while end < len(text):
        match = _TOKEN.match(text, end)
        if match is None:
            raise _NoValueError
        tokens.append(match[1].replace(",", "") if match[1] else _SAME.get(match[2], match[2]))
        end = match.end()
    return tokens


class _Parser:
    """A recursive-descent parser; `depth` is the nesting that is still allowed."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens, self.at = tokens, 0

    @property
    def at_end(self) -> bool:
        return self.at == len(self.tokens)

    def sum(self, depth: int) -> Fraction:
        value = self._product(depth)
        while sign := self._take("+-"):
            other = self._product(depth)
            value = value + other if sign == "+" else value - other
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._signed(depth)
        while sign := self._take("*/"):
            other = self._signed(depth)
            value = value * other if sign == "*" else value / other
        return value

    def _signed(self, depth: int) -> Fraction:
        if depth == 0:
            raise _NoValueError
        if sign := self._take("+-"):
            value = self._signed(depth - 1)
            return -value if sign == "-" else value
        value = self._value(depth)
        return value / 100 if self._take("%") else value

    def _value(self, depth: int) -> Fraction:
        if self._take("("):
            value = self.sum(depth - 1)
            if not self._take(")"):
                raise _NoValueError
            return value
        if self.at_end or self.tokens[self.at] in "+-*/()%":
            raise _NoValueError
        self.at += 1
        return Fraction(self.tokens[self.at - 1])

    def _take(self, signs: str) -> str:
        """Consume the next token if it is one of `signs`, else return ""."""
        if self.at_end or self.tokens[self.at] not in signs:
            return ""
        self.at += 1
        return self.tokens[self.at - 1]
