"""Questions answered by generation, scored by exact match with the reference answer (Chinese and English)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.metrics.exact_match import exact_match
from eval.protocols import Answer, Generate, Generated, Request, Sample, SampleMetric, Task
from eval.rows import BadExampleError, Example, examples

if TYPE_CHECKING:
    from eval.prompt import Prompter


def check(example: Example) -> Example:
    """Conversations that end in the reference answer."""
    if not example.answered or len(example.messages) < 2:
        raise BadExampleError("there is no question with a reference answer; messages must end with the assistant's")
    return example


def ask(example: Example, prompter: Prompter) -> Sequence[Request]:
    """The last answer is asked for."""
    return [Generate(prompter.question(example.messages[:-1]), prompter.max_new_tokens, prompter.stop_ids)]


def score(example: Example, answers: Sequence[Answer]) -> Sample:
    """1.0 or 0.0."""
    (answer,) = answers
    assert isinstance(answer, Generated)
    reference = example.messages[-1]["content"]
    shown = {"prompt": example.messages[-2]["content"], "answer": answer.text, "reference": reference}
    return Sample(
        example.id, {"exact_match": exact_match(answer.text, reference)}, shown | {"finished": answer.finished}
    )


TASK = Task(
    name="qa",
    version=1,
    about="answers by generation, scored by exact match",
    load=examples(check),
    ask=ask,
    score=score,
    metrics=(SampleMetric("exact_match", higher_is_better=True, is_share=True),),
)
