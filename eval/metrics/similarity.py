"""How alike two answers are: by their characters in order, after the normalisation of exact match."""

from __future__ import annotations

from collections.abc import Iterator

from eval.metrics.exact_match import normalise

ALIKE = 0.7  # above it an answer counts as partly right
MOST_CHARACTERS = 10_000  # of a text; two of that length take about a second


def similarity(prediction: str, reference: str) -> float:
    """Ratcliff-Obershelp similarity in [0, 1]: 2 x matching characters / all characters; 1.0 of two empty texts.

    Exactly difflib's `SequenceMatcher(None, prediction, reference, autojunk=False).ratio()`, several times as fast. As
    there it may change a little when the texts change places. Of a longer text the first 10,000 characters count.
    """
    one, other = (normalise(text)[:MOST_CHARACTERS] for text in (prediction, reference))
    return 2.0 * matching(one, other) / (len(one) + len(other)) if one or other else 1.0


def partial_match(prediction: str, reference: str) -> float:
    """1.0 where the similarity is above 0.7, else 0.0."""
    return float(similarity(prediction, reference) > ALIKE)


def matching(one: str, other: str) -> int:
    """Characters of the longest common substring, and of those on its left and right, over and over.

    Of several longest ones the first in `one` counts, where it is first in `other`. So nothing on its left is as long,
    and all that are as long on its right are found in one go.
    """
    if one == other:
        return len(one)
    total = 0
    waiting = [(one, other, min(len(one), len(other)))]
    while waiting:
        first, second, most = waiting.pop()
        length = longest_common(first, second, most)
        start = place = 0
        for found, where in _matches(first, second, length) if length else ():
            total += length
            if length > 1:
                waiting.append((first[start:found], second[place:where], length - 1))
            start, place = found + length, where + length
        if length > 1:
            waiting.append((first[start:], second[place:], length - 1))
    return total


def longest_common(one: str, other: str, most: int) -> int:
    """The length of the longest common substring, at most `most`.

    Whether there is one of some length is a question to a set; the length is found by doubling and then halving, since
    where there is a longer one there is a shorter one.
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
    """Whether both have some substring of that length in common."""
    known = {hash(other[k : k + length]) for k in range(len(other) - length + 1)}  # not the texts: they would be large
    parts = (one[k : k + length] for k in range(len(one) - length + 1))
    return any(hash(part) in known and part in other for part in parts)  # another text may have the same hash


def _matches(one: str, other: str, length: int) -> Iterator[tuple[int, int]]:
    """The places of common substrings of that length, from the left: the first in `one`, then behind it, and so on."""
    last = {hash(other[k : k + length]): k for k in range(len(other) - length + 1)}
    start = place = 0
    for found in [k for k in range(len(one) - length + 1) if hash(one[k : k + length]) in last]:
        if found < start:
            continue
        part = one[found : found + length]
        where = other.find(part, place) if last[hash(part)] >= place else -1
        if where >= 0:  # else it was further left, or is another text with the same hash
            yield found, where
            start, place = found + length, where + length
