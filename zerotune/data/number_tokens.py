"""Numbers of a text as tokens with values, for training and evaluation alike. This file imports nothing heavy.

In a prompt a number is one id, like each other token: the bits of its value, which no id of a vocabulary equals
(`number_id`). So values are sliced, compared, shared as prefixes and cached with the ids; the model separates them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from zerotune.data.numbers_in_text import NUM, NumberedText, Span, numbered

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

HAS_DIGIT = re.compile("[0-9]")
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


def is_number(token: int) -> bool:
    """Whether an id of a prompt is a number."""
    return not 0 <= token < FIRST_NUMBER
