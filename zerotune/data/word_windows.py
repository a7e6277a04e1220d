"""A sentence of given words in sub-words, and the windows in which it is read where it is longer than the context."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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

    owners: for each of `ids` the number of its word. count: of the words.
    """

    before: tuple[int, ...]
    ids: tuple[int, ...]
    after: tuple[int, ...]
    owners: tuple[int, ...]
    count: int

    @property
    def firsts(self) -> tuple[int | None, ...]:
        """For each word the place in `ids` of its first sub-word; None where the tokenizer makes nothing of it."""
        found = {owner: place for place, owner in reversed(list(enumerate(self.owners)))}
        return tuple(found.get(word) for word in range(self.count))

    @classmethod
    def encoded(cls, tokenizer: Tokenizer, words: Sequence[str], glues: bool) -> Words:
        """Given words as the tokenizer, with neither truncation nor padding, writes them. glues: see `glues_words`."""
        encoding = tokenizer.encode(as_written(words) if glues else list(words), is_pretokenized=True)
        ids, owners = tuple(encoding.ids), encoding.word_ids
        inside = [place for place, owner in enumerate(owners) if owner is not None]
        begin, end = (inside[0], inside[-1] + 1) if inside else (len(ids), len(ids))
        known = tuple(-1 if owner is None else owner for owner in owners[begin:end])
        return cls(ids[:begin], ids[begin:end], ids[end:], known, len(words))

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

    def starts(self, size: int | None) -> list[int]:
        """The place in `ids` where each window begins."""
        return self._starts(self._room(size))

    def _room(self, size: int | None) -> int:
        whole = max(len(self.ids), 1)
        return whole if size is None else min(whole, max(size - len(self.before) - len(self.after), 1))

    def _starts(self, room: int) -> list[int]:
        last = len(self.ids) - room
        return [*range(0, last, max(room // 2, 1)), last] if last > 0 else [0] if self.ids else []


def glues_words(tokenizer: Tokenizer) -> bool:
    """Whether given words come out as if nothing stood between them, as byte-level tokenizers do it."""
    ids = tokenizer.encode(["a", "b"], is_pretokenized=True, add_special_tokens=False).ids
    text: str = tokenizer.decode(ids)
    return text.split() == ["ab"]


def untruncated(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer without the truncation and padding that a file or a caller may have left on it."""
    if not (tokenizer.truncation or tokenizer.padding):
        return tokenizer
    plain: Tokenizer = type(tokenizer).from_str(tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain
