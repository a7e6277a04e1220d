"""Character similarity of two answers, after the normalisation of exact match."""

from __future__ import annotations

from collections.abc import Iterator

from eval.metrics.exact_match import normalise

MATCH_THRESHOLD = 0.7  # an answer above it counts as a partial match
MOST_CHARACTERS = 10_000  # of a text; two texts of that length take about a second


def similarity(prediction: str, reference: str) -> float:
    """Ratcliff-Obershelp similarity in [0, 1]: 2 x matching characters / all characters; 1.0 for two empty texts.

    Equals difflib's `SequenceMatcher(None, prediction, reference, autojunk=False).ratio()`, but several times faster.
    Like that, it is not quite symmetric. Only the first 10,000 characters of a text count.
    """
    one, other = (normalise(text)[:MOST_CHARACTERS] for text in (prediction, reference))
    return 2.0 * matching(one, other) / (len(one) + len(other)) if one or other else 1.0


def partial_match(prediction: str, reference: str) -> float:
    """1.0 if the similarity exceeds 0.7, else 0.0."""
    return float(similarity(prediction, reference) > MATCH_THRESHOLD)


def matching(one: str, other: str) -> int:
    """Length of the longest common substring, plus, recursively, of those on its left and right.

    Of several longest ones, the first in `one` and then in `other` counts. So none is as long on its left, and all that
    are as long on its right are found in one pass.
    """
    if one == other:
        return len(one)
    total = 0
    pending = [(one, other, min(len(one), len(other)))]
    while pending:
        first, second, most = pending.pop()
        length = longest_common(first, second, most)
        start = place = 0
        for found, where in _matches(first, second, length) if length else ():
            total += length
            if length > 1:
                pending.append((first[start:found], second[place:where], length - 1))
            start, place = found + length, where + length
        if length > 1:
            pending.append((first[start:], second[place:], length - 1))
    return total


def longest_common(one: str, other: str, most: int) -> int:
    """The length of the longest common substring, at most `most`.

    A set of hashes shows whether one of a given length exists; the length is found by doubling, then bisection.
    """
    if most < 1 or set(one).isdisjoint(other):
        return 0
    best, fails = 1, min(most, len(one), len(other)) + 1
    length = 2
    while best + 1 < fails:
        if _common(one, other, length):
            best = length
        else:
            fails = length
        length = min(2 * best, (best + fails) // 2)
    return best


def _common(one: str, other: str, length: int) -> bool:
    """Whether both texts share a substring of that length."""
    known = {hash(other[k : k + length]) for k in range(len(other) - length + 1)}  # hashes take less memory than texts
    parts = (one[k : k + length] for k in range(len(one) - length + 1))
    return any(hash(part) in known and part in other for part in parts)  # rules out hash collisions


def _matches(one: str, other: str, length: int) -> Iterator[tuple[int, int]]:
    """Positions (in one, in other) of non-overlapping common substrings of that length, from left to right."""
    last = {hash(other[k : k + length]): k for k in range(len(other) - length + 1)}
    start = place = 0
    for found in [k for k in range(len(one) - length + 1) if hash(one[k : k + length]) in last]:
        if found < start:
            continue
        part = one[found : found + length]
        where = other.find(part, place) if last[hash(part)] >= place else -1
        if where >= 0:  # else it lies further left, or is a hash collision
            yield found, where
            start, place = found + length, where + length
