"""Precision, recall and F1 of entities in a sequence of tags, equal to seqeval's default mode.

One rule reads IOB1, IOB2 and IOBES, so the scheme need not be known: a word continues the previous entity if its tag is
I- or E- of the same type and the previous tag is B- or I-; any other tag but O starts an entity. So an I- without a
predecessor starts one, as in seqeval's default mode and conlleval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.protocols import RatioMetric

Entity = tuple[str, int, int]  # type, first word, last word


@dataclass(frozen=True)
class Counts:
    """Numbers of entities. correct: predicted with the right type and both ends. expected: in the reference tags."""

    correct: float = 0
    predicted: float = 0
    expected: float = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.correct + other.correct, self.predicted + other.predicted, self.expected + other.expected)

    @property
    def precision(self) -> float:
        """Share of predicted entities that are correct; 0 if none was predicted."""
        return self.correct / self.predicted if self.predicted > 0 else 0.0

    @property
    def recall(self) -> float:
        """Share of expected entities that were found; 0 if there are none."""
        return self.correct / self.expected if self.expected > 0 else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if one is 0."""
        both = self.predicted + self.expected
        return 2 * self.correct / both if both > 0 else 0.0


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence, in order. Every tag must match `zerotune.data.tagged.TAG`."""
    found: list[Entity] = []
    before, type_before = "O", ""
    for place, tag in enumerate(tags):
        mark, type_ = tag[0], tag[2:]
        if mark in "IE" and before in "BI" and type_ == type_before:
            found[-1] = (type_, found[-1][1], place)
        elif mark != "O":
            found.append((type_, place, place))
        before, type_before = mark, type_
    return found


def count_by_type(expected: Sequence[str], predicted: Sequence[str]) -> dict[str, Counts]:
    """Counts of a sentence's entities, for each type that occurs in either sequence of tags."""
    reference, found = set(entities(expected)), set(entities(predicted))
    return {
        name: Counts(*(sum(entity[0] == name for entity in group) for group in (reference & found, found, reference)))
        for name in sorted({entity[0] for entity in reference | found})
    }


def twice(share: float) -> float:
    """F1 is twice the ratio of correct entities to predicted plus expected ones."""
    return 2 * share


# Over all sentences; F1 is the micro average.
PRECISION = RatioMetric("precision", True, "right_entities", ("predicted_entities",))
RECALL = RatioMetric("recall", True, "right_entities", ("gold_entities",))
F1 = RatioMetric("f1", True, "right_entities", ("predicted_entities", "gold_entities"), of_ratio=twice)
TOKEN_ACCURACY = RatioMetric("token_accuracy", True, "right_tokens", ("tokens",))  # words with the reference tag
