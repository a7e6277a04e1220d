"""ROUGE (Lin 2004, aclanthology.org/W04-1013): overlap of words and of their order with a reference, as F-measures.

ROUGE-1 and -2 are those of rouge-chinese for Chinese pairs, whose words and punctuation jieba cuts, and of rouge-score,
without stemming, for all others; `eval.metrics.script` finds the words of every script. ROUGE-L takes each text as one
sentence. Its longest common subsequence is found here: the libraries' tables take seconds and gigabytes for long texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from eval.metrics.script import Writing, folded, missing, tokens, writing

NAMES = ("rouge1", "rouge2", "rougeL")


def rouge(prediction: str, reference: str) -> Mapping[str, float]:
    """ROUGE-1, -2 and -L, each in [0, 1], by the writing of the pair. Raises UserError without the library.

    Case, width and Unicode form do not count. The same words score 1.0, even where a text of one word has no pair of
    words; a text without words scores 0.0 against all but the same text.
    """
    one, other = folded(prediction), folded(reference)
    written = writing(other, one)
    predicted, wanted = tokens(one, written), tokens(other, written)
    if predicted == wanted and (wanted or one.split() == other.split()):
        return dict.fromkeys(NAMES, 1.0)
    if not predicted or not wanted:
        return dict.fromkeys(NAMES, 0.0)
    counted = (_chinese if written is Writing.CHINESE else _others)(" ".join(predicted), " ".join(wanted))
    both = longest_common_subsequence(predicted, wanted)
    return {**counted, "rougeL": 2 * both / (len(predicted) + len(wanted))}


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Its length, by one row of the usual table in the bits of a number (Hyyro 2004, "Bit-parallel LCS-length")."""
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
    """The tokenizer that rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        """Tokens that were joined by spaces."""
        return text.split(" ")
