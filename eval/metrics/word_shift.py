"""Why a model finds one corpus harder than another: which words are more frequent in it, and how far the two are apart.

The distance is the Jensen-Shannon divergence of the word frequencies (Lin 1991, doi:10.1109/18.61115), in bits: 0 for
equal frequencies, 1 for no common word. It is a sum over words, so each word has its share of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from eval.metrics.script import UNKNOWN, folded, words


@dataclass(frozen=True)
class Shift:
    """One word: its frequency in both corpora, and what it adds to the divergence, in bits."""

    word: str
    first: float
    second: float
    bits: float


def frequencies(texts: Iterable[str]) -> dict[str, float]:
    """The share of each word, in lower case, among all words; a mark of unknown words is none."""
    counts = Counter(word for text in texts for word in words(folded(text)) if word != UNKNOWN)
    total = counts.total()
    return {word: count / total for word, count in counts.items()}


def shifts(first: dict[str, float], second: dict[str, float]) -> list[Shift]:
    """Every word of either corpus, the most shifted first; their bits sum to the divergence."""
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
