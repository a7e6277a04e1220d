"""Generated answers to questions, scored by exact and partial match with the reference, in any script."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from eval.metrics.exact_match import exact_match
from eval.metrics.similarity import MATCH_THRESHOLD, similarity
from eval.protocols import Sample, SampleMetric, Task
from zerotune.data.fields import RowError
from zerotune.data.hub import Hub
from zerotune.data.rows import Example, examples
from zerotune.inference.reasoning import without_reasoning
from zerotune.inference.requests import Answer, Generate, Generated, Request

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter


def check(example: Example) -> Example:
    """Accept conversations with a text response to generate; its last one is the reference."""
    last = example.turns[-1] if example.turns else 0
    if not last:
        raise RowError("there is no question with a reference answer")
    if "tool_calls" in example.messages[last]:
        raise RowError(
            "the last answer calls a tool, and only answers in words are compared; the task perplexity measures calls"
        )
    return dataclasses.replace(example, messages=example.messages[: last + 1])


def ask(example: Example, prompter: Prompter) -> Sequence[Request]:
    """Generate the last assistant message."""
    prompt = prompter.chat_prompt(example.messages[:-1], example.tools)
    return [Generate(prompt, prompter.max_new_tokens, prompter.stop_ids)]


def outcome(example: Example, answers: Sequence[Answer], measure: Callable[[str, str], Mapping[str, float]]) -> Sample:
    """The sample of an answer; `measure` computes its values from (answer, reference).

    Of several correct answers, the one most similar to the given answer is the reference.
    """
    (answer,) = answers
    assert isinstance(answer, Generated)
    references = tuple(map(without_reasoning, (example.messages[-1]["content"], *example.also_right)))
    reference = max(references, key=partial(similarity, answer.text)) if example.also_right else references[0]
    shown = {"prompt": example.messages[-2]["content"], "answer": answer.text, "reference": reference}
    groups = {"subset": example.subset} if example.subset else {}
    values = measure(answer.text, reference)
    return Sample(example.id, values, shown | {"finished": answer.finished}, groups)


def score(example: Example, answers: Sequence[Answer]) -> Sample:
    """Score by exact match and similarity, and whether the similarity exceeds 0.7."""
    return outcome(example, answers, _matches)


def _matches(prediction: str, reference: str) -> Mapping[str, float]:
    value = similarity(prediction, reference)
    return {
        "exact_match": exact_match(prediction, reference),
        "partial_match": float(value > MATCH_THRESHOLD),
        "similarity": value,
    }


TASK = Task(
    name="qa",
    version=4,
    about="generated answers, scored by exact and partial match",
    load=examples(check),
    ask=ask,
    score=score,
    metrics=(
        SampleMetric("exact_match", higher_is_better=True, is_share=True),
        SampleMetric("partial_match", higher_is_better=True, is_share=True),
    ),
    source=Hub(
        "google-research-datasets/nq_open",
        split="validation",
        columns={
            "question": "Answer with a name, a number or a few words and nothing else.\n\n{{ question }}?",
            "answer": "answer",
        },
    ),
)
