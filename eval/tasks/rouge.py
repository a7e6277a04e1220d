"""Generated answers, scored by ROUGE-1, -2 and -L against the reference, in any script."""

from __future__ import annotations

from collections.abc import Sequence

from eval.metrics.rouge import NAMES, rouge
from eval.protocols import Sample, SampleMetric, Task
from eval.tasks.qa import ask, check, outcome
from zerotune.data.hub import Hub
from zerotune.data.rows import Example, examples
from zerotune.inference.requests import Answer


def score(example: Example, answers: Sequence[Answer]) -> Sample:
    """Score by the three F-measures."""
    return outcome(example, answers, rouge)


TASK = Task(
    name="rouge",
    version=3,
    about="generated answers, scored by ROUGE-1, -2 and -L",
    load=examples(check),
    ask=ask,
    score=score,
    metrics=tuple(SampleMetric(name, higher_is_better=True) for name in NAMES),
    source=Hub(
        "abisee/cnn_dailymail",
        split="test",
        name="3.0.0",
        files="{name}/{split}-*.parquet",
        columns={
            "question": "Summarise this article in three or four short sentences.\n\n{{ article }}",
            "answer": "highlights",
        },
    ),
)
