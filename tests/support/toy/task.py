"""A task: how many characters an answer to a riddle has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.protocols import Sample, SampleMetric, Task
from zerotune.data.rows import Example, examples
from zerotune.inference.requests import Answer, Generate, Generated, Request

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter


def ask(example: Example, prompter: Prompter) -> Sequence[Request]:
    """The riddle is asked."""
    return [Generate(prompter.question(example.messages[:-1]), prompter.max_new_tokens, prompter.stop_ids)]


def score(example: Example, answers: Sequence[Answer]) -> Sample:
    """The characters of the answer."""
    (answer,) = answers
    assert isinstance(answer, Generated)
    return Sample(example.id, {"characters": float(len(answer.text))}, {"answer": answer.text})


TASK = Task(
    name="riddles",
    version=1,
    about="how long answers to riddles are",
    load=examples(lambda example: example),
    ask=ask,
    score=score,
    metrics=(SampleMetric("characters", higher_is_better=False),),
)
