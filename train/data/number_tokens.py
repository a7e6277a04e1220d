"""Numbers of a rendered text as tokens with values. Runs in worker processes: this file must not import torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from zerotune.data.numbers_in_text import NUM, NumberedText, Span, numbered

HAS_DIGIT = re.compile("[0-9]")


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
