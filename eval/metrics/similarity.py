"""How alike two answers are: by their characters in order, after the normalisation of exact match."""

from __future__ import annotations

from eval.metrics.exact_match import normalise

ALIKE = 0.7  # above it an answer counts as partly right


def similarity(prediction: str, reference: str) -> float:
    """Ratcliff-Obershelp similarity in [0, 1]: 2 x matching characters / all characters.

    Exactly difflib's `SequenceMatcher(None, prediction, reference, autojunk=False).ratio()`, several times as fast.
    """
    one, other = normalise(prediction), normalise(reference)
    return 2.0 * matching(one, other) / (len(one) + len(other)) if one or other else 1.0


def partial_match(prediction: str, reference: str) -> float:
    """1.0 where the similarity is above 0.7, else 0.0."""
    return float(similarity(prediction, reference) > ALIKE)


def matching(one: str, other: str) -> int:
    """Characters of the longest common substring, and of those on its left and right, over and over."""
    if one == other:
        return len(one)
    total = 0
    waiting = [(one, other, min(len(one), len(other)))]
    while waiting:
        first, second, most = waiting.pop()
        start, place, length = longest_common(first, second, most)
        if length:
            total += length
            waiting.append((first[:start], second[:place], length))
            waiting.append((first[start + length :], second[place + length :], length))
    return total


def longest_common(one: str, other: str, most: int) -> tuple[int, int, int]:
    """Where the longest common substring begins in both, and its length; the first in `one`, then in `other`.

    It is no longer than `most`. Whether there is one of some length is a question to a set; the length is found by
    doubling and then halving, since where there is a longer one there is a shorter one.
    """
    best, fails = (0, 0, 0), min(most, len(one), len(other)) + 1
    length = 1
    while best[2] + 1 < fails:
        found = _common(one, other, length)
        if found is None:
            fails = length
        else:
            best = (*found, length)
        length = min(2 * best[2], (best[2] + fails) // 2)
    return best


def _common(one: str, other: str, length: int) -> tuple[int, int] | None:
    """The places of the first substring of that length that both have."""
    known = {hash(other[k : k + length]) for k in range(len(other) - length + 1)}  # not the texts: they would be large
    for start in range(len(one) - length + 1):
        part = one[start : start + length]
        if hash(part) in known:
            place = other.find(part)
            if place >= 0:  # else another text with the same hash
                return start, place
    return None
