"""ROUGE (Lin 2004, aclanthology.org/W04-1013): overlap of words and of their order with a reference, as F-measures.

English is scored by rouge-score (lower case, letters and digits only, no stemming). Chinese is cut into words by jieba
and scored by rouge-chinese, whose ROUGE-L counts the longest common subsequence of each text as one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from eval.metrics.script import is_chinese, missing, words

NAMES = ("rouge1", "rouge2", "rougeL")


def rouge(prediction: str, reference: str) -> Mapping[str, float]:
    """ROUGE-1, -2 and -L, each in [0, 1], by the language of the reference. Raises UserError without the library."""
    if is_chinese(reference):
        return _chinese(prediction, reference)
    found = _english().score(reference, prediction)
    return {name: float(found[name].fmeasure) for name in NAMES}


def _chinese(prediction: str, reference: str) -> Mapping[str, float]:
    predicted, wanted = words(prediction), words(reference)
    if not predicted:  # the library refuses an empty text
        return dict.fromkeys(NAMES, 0.0)
    (found,) = _chinese_scorer().get_scores(" ".join(predicted), " ".join(wanted))
    return {name: float(found[name.replace("rouge", "rouge-").lower()]["f"]) for name in NAMES}


@cache
def _english() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise missing("rouge-score", "ROUGE") from error
    return RougeScorer(list(NAMES), use_stemmer=False)


@cache
def _chinese_scorer() -> Any:
    try:
        from rouge_chinese import Rouge
    except ImportError as error:
        raise missing("rouge-chinese", "ROUGE of Chinese text") from error
    return Rouge()
