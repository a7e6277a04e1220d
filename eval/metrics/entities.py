"""Entities in a sequence of tags, and how many of them were found: equal to seqeval's default mode.

One rule reads IOB1, IOB2 and IOBES, so the scheme need not be known: a word goes on with the entity before it where its
tag is I- or E- of the same type and the tag before is B- or I-; any other tag but O begins an entity. A broken I- that
follows nothing thus begins one, as seqeval's default mode and conlleval have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.protocols import RatioMetric

Entity = tuple[str, int, int]  # type, first word, last word


@dataclass(frozen=True)
class Counts:
    """Entities that are right in type and both ends, that were predicted, and that there are."""

    right: float = 0
    predicted: float = 0
    gold: float = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.right + other.right, self.predicted + other.predicted, self.gold + other.gold)

    @property
    def precision(self) -> float:
        """Share of the predicted that are right; 0 where nothing was predicted."""
        return self.right / self.predicted if self.predicted > 0 else 0.0

    @property
    def recall(self) -> float:
        """Share of those there are that were found; 0 where there are none."""
        return self.right / self.gold if self.gold > 0 else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 where one is 0."""
        both = self.predicted + self.gold
        return 2 * self.right / both if both > 0 else 0.0


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of one sentence, in order. Every tag must match `zerotune.data.tagged.TAG`."""
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


def count_by_type(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, Counts]:
    """Counts of one sentence's tags, for each type that occurs in either."""
    there, said = set(entities(gold)), set(entities(predicted))
    return {
        name: Counts(*(sum(entity[0] == name for entity in group) for group in (there & said, said, there)))
        for name in sorted({entity[0] for entity in there | said})
    }


def twice(share: float) -> float:
    """Right entities over predicted and real ones make half of F1."""
    return 2 * share


# Over all sentences; F1 is the micro average.
PRECISION = RatioMetric("precision", True, "right_entities", ("predicted_entities",))
RECALL = RatioMetric("recall", True, "right_entities", ("gold_entities",))
F1 = RatioMetric("f1", True, "right_entities", ("predicted_entities", "gold_entities"), of_ratio=twice)
TOKEN_ACCURACY = RatioMetric("token_accuracy", True, "right_tokens", ("tokens",))  # all words with exactly the gold tag
