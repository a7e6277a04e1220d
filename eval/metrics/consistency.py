"""Consistency of the responses of a dialogue, relative to that of the reference responses.

See et al. (arXiv:1902.08654) measure repetition across turns and relatedness to earlier turns, and compare with human
responses. Here the level of the reference is the target: more similarity is repetition, less is incoherence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

REPEATED = 0.9  # an answer this similar to an earlier one is a repetition

Similarity = Callable[[str, str], float]


def consistency(answers: Sequence[str], references: Sequence[str], similarity: Similarity) -> float:
    """Mean over all pairs of turns of 1 - |similarity of the answers - similarity of the references|, at least 0.

    It is 1 if any two answers are as similar to each other as their references. Both repetition and incoherence lower
    it, and a pair with an empty answer counts 0; it does not measure correctness. answers, references: of equal length,
    at least two.
    """
    pairs = list(combinations(range(len(references)), 2))
    return sum(_pair_consistency(answers, references, similarity, *pair) for pair in pairs) / len(pairs)


def unrepeated(answers: Sequence[str], references: Sequence[str], similarity: Similarity) -> float:
    """Share of turns whose answer repeats no earlier one, except where the reference does so too."""

    def repeats(turn: int, earlier: int) -> bool:
        return (
            similarity(answers[turn], answers[earlier]) > REPEATED
            and similarity(references[turn], references[earlier]) <= REPEATED
        )

    answered = [k for k, answer in enumerate(answers) if answer.strip()]
    new = [k for k in answered if not any(repeats(k, earlier) for earlier in answered if earlier < k)]
    return len(new) / len(references)


def _pair_consistency(
    answers: Sequence[str], references: Sequence[str], similarity: Similarity, earlier: int, turn: int
) -> float:
    if not answers[earlier].strip() or not answers[turn].strip():
        return 0.0
    own, expected = (similarity(texts[turn], texts[earlier]) for texts in (answers, references))
    return max(1.0 - abs(own - expected), 0.0)  # cosines may differ by 2
