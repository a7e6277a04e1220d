"""ROUGE (Lin 2004, aclanthology.org/W04-1013): overlap of words and of their order with a reference, as F-measures.

ROUGE-1 and -2 come from rouge-chinese for Chinese pairs (words and punctuation by jieba), and from rouge-score without
stemming for all others; `eval.metrics.writing_system` splits the words of every script. ROUGE-L treats each text as one
sentence; its longest common subsequence is computed here, since the libraries need gigabytes for long texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from eval.metrics.writing_system import Writing, folded, missing, tokens, writing

NAMES = ("rouge1", "rouge2", "rougeL")


def rouge(prediction: str, reference: str) -> Mapping[str, float]:
    """ROUGE-1, -2 and -L, each in [0, 1]. Raises UserError without the library.

    Case, width and Unicode form are ignored. Equal words score 1.0, even a single word without bigrams; a text without
    words scores 0.0 unless both texts are equal.
    """
    one, other = folded(prediction), folded(reference)
    kind = writing(other, one)
    predicted, expected = tokens(one, kind), tokens(other, kind)
    if predicted == expected and (expected or one.split() == other.split()):
        return dict.fromkeys(NAMES, 1.0)
    if not predicted or not expected:
        return dict.fromkeys(NAMES, 0.0)
    ngrams = (_chinese if kind is Writing.CHINESE else _others)(" ".join(predicted), " ".join(expected))
    common = longest_common_subsequence(predicted, expected)
    return {**ngrams, "rougeL": 2 * common / (len(predicted) + len(expected))}


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, with one table row in the bits of an integer (Hyyro 2004)."""
    places: dict[str, int] = {}
    for place, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << place
    whole = row = (1 << len(one)) - 1
    for token in other:
        matches = row & places.get(token, 0)
        row = (row + matches | row - matches) & whole
    return len(one) - row.bit_count()


def _chinese(prediction: str, reference: str) -> dict[str, float]:
    (found,) = _chinese_scorer().get_scores(prediction, reference)
    return {name: float(found[name.replace("rouge", "rouge-")]["f"]) for name in NAMES[:2]}


def _others(prediction: str, reference: str) -> dict[str, float]:
    found = _other_scorer().score(reference, prediction)
    return {name: float(found[name].fmeasure) for name in NAMES[:2]}


@cache
def _other_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing("rouge-score", "ROUGE") from error
    return RougeScorer(list(NAMES[:2]), tokenizer=_ByTheSpace())


@cache
def _chinese_scorer() -> Any:
    try:
        from rouge_chinese import Rouge
    except ImportError as error:
        raise missing("rouge-chinese", "ROUGE of Chinese text") from error
    return Rouge(metrics=["rouge-1", "rouge-2"])


class _ByTheSpace:
    """A tokenizer for rouge-score that splits tokens joined by spaces."""

    def tokenize(self, text: str) -> list[str]:
        return text.split(" ")
