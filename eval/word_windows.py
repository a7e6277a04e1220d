"""A sentence of given words in sub-words, and the windows in which it is read where it is longer than the context."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Place = tuple[int, int]  # window, position in it
# Chinese and Japanese characters and their punctuation, full-width forms: written without spaces between.
WIDE = re.compile("[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003134f]")


def as_written(words: Sequence[str]) -> list[str]:
    """Words as they stand in running text: behind a space, but for the first, and between wide characters."""
    spaced = [
        word if not word or (WIDE.match(before[-1:]) and WIDE.match(word)) else f" {word}"
        for before, word in pairwise(words)
    ]
    return [*words[:1], *spaced]


@dataclass(frozen=True)
class Words:
    """before + ids + after is what a model reads; before and after are special tokens.

    firsts: for each word the place in `ids` of its first sub-word; None where the tokenizer makes nothing of it.
    """

    before: tuple[int, ...]
    ids: tuple[int, ...]
    after: tuple[int, ...]
    firsts: tuple[int | None, ...]

    def windows(self, size: int | None) -> list[tuple[int, ...]]:
        """What the model reads, at most `size` tokens at a time; windows overlap by half."""
        room = self._room(size)
        return [self.before + self.ids[start : start + room] + self.after for start in self._starts(room)]

    def places(self, size: int | None) -> list[Place | None]:
        """Where each word's class is read: of all windows that hold its first sub-word, in the one where least of its
        surroundings is cut off. The sentence's own ends cut nothing off.
        """
        room = self._room(size)
        starts = self._starts(room)

        def context(first: int, start: int) -> float:
            end = start + room
            if not start <= first < end:
                return -math.inf
            before = first - start if start else math.inf
            return min(before, end - 1 - first if end < len(self.ids) else math.inf)

        def place(first: int) -> Place:
            window = max(range(len(starts)), key=lambda k: context(first, starts[k]))
            return window, len(self.before) + first - starts[window]

        return [None if first is None else place(first) for first in self.firsts]

    def _room(self, size: int | None) -> int:
        whole = max(len(self.ids), 1)
        return whole if size is None else min(whole, max(size - len(self.before) - len(self.after), 1))

    def _starts(self, room: int) -> list[int]:
        last = len(self.ids) - room
        return [*range(0, last, max(room // 2, 1)), last] if last > 0 else [0] if self.ids else []
