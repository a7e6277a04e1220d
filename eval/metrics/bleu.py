"""BLEU (Papineni 2002, aclanthology.org/P02-1040) and chrF (Popovic 2015, aclanthology.org/W15-3049) of corpora.

Both are functions of sums over the corpus: each row has counts, and sacrebleu computes the score from their sums, as it
does in its own resampling. Scores are never averaged over rows. sacrebleu's tokenizer is `zh` for Chinese pairs, `char`
for other scripts without spaces between words (Thai, Japanese ...), and `13a` for all others. As in sacrebleu, case and
width matter; composed and decomposed Unicode forms are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from eval.metrics.writing_system import Writing, composed, missing, writing
from eval.protocols import Columns

TOKENIZERS = {Writing.CHINESE: "zh", Writing.UNSPACED: "char", Writing.SPACED: "13a"}


def bleu_counts(prediction: str, reference: str) -> Mapping[str, float]:
    """The counts that a row adds to the corpus. Raises UserError without sacrebleu."""
    return _counts("bleu", _bleu(TOKENIZERS[writing(reference, prediction)]), prediction, reference)


def bleu(columns: Columns) -> float:
    """Corpus BLEU, 0 to 100, with sacrebleu's default smoothing (exp)."""
    return _score("bleu", _bleu("13a"), columns)


def chrf_counts(prediction: str, reference: str) -> Mapping[str, float]:
    """The counts that a row adds to the corpus. Raises UserError without sacrebleu."""
    return _counts("chrf", _chrf(), prediction, reference)


def chrf(columns: Columns) -> float:
    """Corpus chrF2, 0 to 100."""
    return _score("chrf", _chrf(), columns)


def _counts(name: str, metric: Any, prediction: str, reference: str) -> Mapping[str, float]:
    (counts,) = metric._extract_corpus_statistics([composed(prediction)], [[composed(reference)]])
    return {f"{name}_{k}": float(count) for k, count in enumerate(counts)}


def _score(name: str, metric: Any, columns: Columns) -> float:
    own = sum(column.startswith(f"{name}_") for column in columns)
    total = [int(columns[f"{name}_{k}"].sum()) for k in range(own)]
    return float(metric._compute_score_from_stats(total).score)


@cache
def _bleu(tokenizer: str) -> Any:
    return _metrics().BLEU(tokenize=tokenizer)


@cache
def _chrf() -> Any:
    return _metrics().CHRF()


def _metrics() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise missing("sacrebleu", "BLEU") from error
    return metrics
