"""Continuations of given prompts, for people to read side by side; nothing is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.protocols import Answer, Generate, Generated, Request, Sample, Task
from eval.rows import BadExampleError, Example, Message, examples

if TYPE_CHECKING:
    from eval.prompt import Prompter


def check(example: Example) -> Example:
    """Texts to continue, and conversations in which somebody asks."""
    if example.text is None and not any(message["role"] == "user" for message in example.messages):
        raise BadExampleError("there is no question in this conversation")
    return example


def ask(example: Example, prompter: Prompter) -> Sequence[Request]:
    """The text as it stands, or the conversation up to its last answer."""
    ids = prompter.document(example.text).ids if example.text is not None else prompter.question(_history(example))
    return [Generate(ids, prompter.max_new_tokens, prompter.stop_ids)]


def score(example: Example, answers: Sequence[Answer]) -> Sample:
    """Only what a person wants to see."""
    (answer,) = answers
    assert isinstance(answer, Generated)
    prompt = example.text if example.text is not None else _history(example)[-1]["content"]
    reference = {"reference": example.messages[-1]["content"]} if example.answered else {}
    return Sample(example.id, {}, {"prompt": prompt, "answer": answer.text, **reference, "finished": answer.finished})


def _history(example: Example) -> Sequence[Message]:
    return example.messages[:-1] if example.answered else example.messages


TASK = Task(
    name="samples",
    version=1,
    about="continuations of prompts, to read side by side",
    load=examples(check),
    ask=ask,
    score=score,
    metrics=(),
)
