"""Numbers of a text as tokens with values, for training and evaluation alike. This file imports nothing heavy.

In a prompt a number is one id, like each other token: the bits of its value, which no id of a vocabulary equals
(`number_id`). So values are sliced, compared, shared as prefixes and cached with the ids; the model separates them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from zerotune.data.numbers_in_text import NUM, NumberedText, Span, numbered

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

HAS_DIGIT = re.compile("[0-9]")
DIGITS = 6  # significant ones, of numbers that a model writes
FIRST_NUMBER = 2**32  # of ids that are numbers; beyond every vocabulary. Those of negative numbers are negative.


class NumberTokens:
    """Reads the numbers of texts for one tokenizer, of which NUM is a token. Its other added tokens stay whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.id = tokenizer.token_to_id(NUM)
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        kept = sorted((text for text in added if HAS_DIGIT.search(text)), key=len, reverse=True)
        self.fixed = re.compile("|".join(map(re.escape, kept))) if kept else None

    def __call__(self, text: str, spans: Sequence[Span] = ()) -> tuple[NumberedText, list[Span]]:
        """See `zerotune.data.numbers_in_text.numbered`. Raises RowError."""
        return numbered(text, spans, self.fixed)

    def window(self, ids_t: NDArray[np.int32], values: Sequence[float], start: int, end: int) -> tuple[float, ...]:
        """The values of the numbers among the tokens [start, end) of a text."""
        before, inside = (int((ids_t[part] == self.id).sum()) for part in (slice(start), slice(start, end)))
        return tuple(values[before : before + inside])

    def with_values(self, ids: Iterable[int], values: Iterable[float]) -> tuple[int, ...]:
        """The tokens of a text with the id of each number in place of NUM."""
        left = iter(values)
        return tuple(number_id(next(left)) if token == self.id else token for token in ids)


def number_id(value: float) -> int:
    """The id of a number in a prompt; fits into 64 bits for values up to LARGEST."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits if bits < 0 else bits + FIRST_NUMBER


def value_of(token: int) -> float:
    """The value of a number's id."""
    value: float = struct.unpack("<d", struct.pack("<q", token if token < 0 else token - FIRST_NUMBER))[0]
    return value


def rounded(value: float, earlier: Iterable[float] = ()) -> float:
    """A number as a model writes it: to DIGITS significant digits, or an earlier number that it equals so far."""
    copied = (one for one in earlier if abs(value - one) <= 10**-DIGITS * abs(one))
    return next(copied, float(f"{value:.{DIGITS - 1}e}") + 0.0)  # not -0


def spelled(value: float) -> str:
    """The text of a number, without an exponent from 1e-5 to 1e16."""
    shortest = repr(value)
    if value and not 1e-5 <= abs(value) < 1e16:
        return shortest
    return f"{Decimal(shortest):f}".removesuffix(".0")


def with_spellings(ids: Sequence[int], tokenizer: Any, decode: Callable[[Sequence[int]], str]) -> str:
    """The text of generated ids."""
    if not any(map(is_number, ids)):
        return decode(ids)
    number = tokenizer.convert_tokens_to_ids(NUM)
    text = decode([number if is_number(token) else token for token in ids])
    for value in map(value_of, filter(is_number, ids)):
        text = text.replace(NUM, spelled(value), 1)
    return text


def is_number(token: int) -> bool:
    """Whether an id of a prompt is a number."""
    return not 0 <= token < FIRST_NUMBER
