"""How the answers of one dialogue hang together, against how the reference's do.

Repetition across a speaker's turns, and how related an answer is to what was said before, are what See et al. measure
(arXiv:1902.08654), beside the same of human answers. Here the reference's own level is the aim: more is repetition,
less is a lost thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

REPEATED = 0.9  # an answer this similar to an earlier one says nothing new

Similarity = Callable[[str, str], float]


def consistency(answers: Sequence[str], references: Sequence[str], similarity: Similarity) -> float:
    """1 where every two answers are as similar to each other as the reference's answers in their places.

    The mean over all pairs of turns of 1 - |similarity of the answers - similarity of the references|, at least 0. An
    answer that repeats an earlier one and one that has nothing to do with it both lose; a pair with an empty answer
    counts 0. Whether an answer is right it does not say. answers, references: as many, at least two.
    """
    pairs = list(combinations(range(len(references)), 2))
    return sum(_alike(answers, references, similarity, *pair) for pair in pairs) / len(pairs)


def unrepeated(answers: Sequence[str], references: Sequence[str], similarity: Similarity) -> float:
    """The share of turns with an answer that repeats no earlier one, but where the reference repeats its own."""

    def repeats(turn: int, earlier: int) -> bool:
        return (
            similarity(answers[turn], answers[earlier]) > REPEATED
            and similarity(references[turn], references[earlier]) <= REPEATED
        )

    said = [k for k, answer in enumerate(answers) if answer.strip()]
    new = [k for k in said if not any(repeats(k, earlier) for earlier in said if earlier < k)]
    return len(new) / len(references)


def _alike(answers: Sequence[str], references: Sequence[str], similarity: Similarity, earlier: int, turn: int) -> float:
    if not answers[earlier].strip() or not answers[turn].strip():
        return 0.0
    own, wanted = (similarity(texts[turn], texts[earlier]) for texts in (answers, references))
    return max(1.0 - abs(own - wanted), 0.0)  # cosines may lie 2 apart
