"""Generated answers, scored by corpus BLEU and chrF against references, in any script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.metrics.bleu import bleu, bleu_counts, chrf, chrf_counts
from eval.protocols import CorpusMetric, Sample, Task
from eval.tasks.qa import ask, check, outcome
from zerotune.common.metric_format import HUNDRED
from zerotune.data.hub import Hub
from zerotune.data.rows import Example, examples
from zerotune.inference.requests import Answer


def score(example: Example, answers: Sequence[Answer]) -> Sample:
    """The counts that the row adds to both corpus scores."""
    return outcome(example, answers, _counts)


def _counts(prediction: str, reference: str) -> Mapping[str, float]:
    return {**bleu_counts(prediction, reference), **chrf_counts(prediction, reference)}


TASK = Task(
    name="bleu",
    version=3,
    about="generated answers, scored by corpus BLEU and chrF",
    load=examples(check),
    ask=ask,
    score=score,
    metrics=(
        CorpusMetric("bleu", higher_is_better=True, of=bleu, of_sums=True, scale=HUNDRED),
        CorpusMetric("chrf", higher_is_better=True, of=chrf, of_sums=True, scale=HUNDRED),
    ),
    source=Hub(
        "wmt/wmt19",
        split="validation",
        name="zh-en",
        files="{name}/{split}-*.parquet",
        columns={
            "question": "Translate into English and write nothing else.\n\n{{ translation.zh }}",
            "answer": "translation.en",
        },
    ),
)
