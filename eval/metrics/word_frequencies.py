"""Compares the word frequencies of two corpora, to explain why a model finds one harder than the other.

The distance is the Jensen-Shannon divergence (Lin 1991, doi:10.1109/18.61115), in bits: 0 for equal frequencies, 1 for
no common word. It is a sum over words, so each word contributes a share.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from eval.metrics.writing_system import UNKNOWN, folded, words


@dataclass(frozen=True)
class Shift:
    """A word's frequency in both corpora, and its contribution to the divergence, in bits."""

    word: str
    first: float
    second: float
    bits: float


def frequencies(texts: Iterable[str]) -> dict[str, float]:
    """The share of each word, in lower case, among all words but unknown ones."""
    counts = Counter(word for text in texts for word in words(folded(text)) if word != UNKNOWN)
    total = counts.total()
    return {word: count / total for word, count in counts.items()}


def shifts(first: dict[str, float], second: dict[str, float]) -> list[Shift]:
    """All words of both corpora, with the largest contribution first; their bits sum to the divergence."""
    found = []
    for word in first.keys() | second.keys():
        p, q = first.get(word, 0.0), second.get(word, 0.0)
        middle = (p + q) / 2
        bits = sum(share / 2 * math.log2(share / middle) for share in (p, q) if share)
        found.append(Shift(word, p, q, bits))
    return sorted(found, key=lambda shift: (-shift.bits, shift.word))


def divergence(found: Iterable[Shift]) -> float:
    """Jensen-Shannon divergence in bits."""
    return math.fsum(shift.bits for shift in found)
