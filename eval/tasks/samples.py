"""Continuations of prompts, greedy and sampled at several temperatures, to read side by side; without scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from eval.protocols import Sample, Table, Task
from zerotune.common.metric_format import plain
from zerotune.data.conversations import Message, said_in
from zerotune.data.fields import RowError
from zerotune.data.raw_row import Row
from zerotune.data.rows import Example, examples
from zerotune.inference.requests import Answer, Generate, Generated, Request

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter

TEMPERATURES = (0.0, 0.7, 1.0)
CAUSAL = "causal sampling"
TITLES = ("Continuations", "One draw of the cause at each position")
SHOWN_CHARACTERS = 300  # of a table cell; the samples file has the whole text
PROMPTS = (
    "The meaning of life is",
    "Once upon a time, there was a little girl who",
    "The central bank said on Tuesday that",
    "人生的意义在于",
    "从前有一座山，山上有",
)


def check(example: Example) -> Example:
    """Accept texts, and conversations with a user message."""
    if example.text is None and not any(message["role"] == "user" for message in example.messages):
        raise RowError("the conversation has no user message")
    return example


def ask(example: Example, prompter: Prompter, temperatures: Sequence[float] = TEMPERATURES) -> Sequence[Request]:
    """Continue the text, or the conversation up to its last response, once for each temperature; with a checkpoint that
    reads numbers as values also by causal sampling.
    """
    if example.text is not None:
        ids = prompter.document(example.text).ids
    else:
        ids = prompter.chat_prompt(_history(example), example.tools)
    settings: list[dict[str, Any]] = [{"temperature": temperature} for temperature in temperatures]
    settings += [{"causal": True}] * prompter.reads_numbers
    return [Generate(ids, prompter.max_new_tokens, prompter.stop_ids, **own) for own in settings]


def score(example: Example, answers: Sequence[Answer], temperatures: Sequence[float] = TEMPERATURES) -> Sample:
    """The texts for the report; there are no values."""
    generated = [answer for answer in answers if isinstance(answer, Generated)]
    prompt = example.text if example.text is not None else said_in(_history(example)[-1])
    reference = {"reference": said_in(example.messages[-1])} if example.answered else {}
    titles = [*map(_title, temperatures), CAUSAL][: len(generated)]
    texts = {title: _with_intervals(answer) for title, answer in zip(titles, generated, strict=True)}
    return Sample(example.id, {}, {"prompt": prompt, **texts, **reference})


def tables(samples: Sequence[Sample], temperatures: Sequence[float] = TEMPERATURES) -> list[Table]:
    """Every prompt with its continuation at each temperature."""
    heads = [("prompt", *map(_title, temperatures))]
    if any(CAUSAL in sample.shown for sample in samples):
        heads.append(("prompt", CAUSAL))
    rows = [[tuple(_shortened(str(sample.shown[head])) for head in own) for sample in samples] for own in heads]
    return [Table(title, own, made) for title, own, made in zip(TITLES, heads, rows, strict=False)]


def at(temperatures: Sequence[float]) -> Task[Example]:
    """The task with other temperatures; 0 is greedy."""
    return dataclasses.replace(
        TASK,
        ask=partial(ask, temperatures=temperatures),
        score=partial(score, temperatures=temperatures),
        tables=partial(tables, temperatures=temperatures),
    )


def _shortened(text: str) -> str:
    return text[:SHOWN_CHARACTERS] + (" ..." if len(text) > SHOWN_CHARACTERS else "")


def _with_intervals(answer: Generated) -> str:
    """The text, and behind it the interval of each number that is a predicted value."""
    pairs = zip(answer.intervals[::2], answer.intervals[1::2], strict=True)
    found = ", ".join(f"[{plain(low)}, {plain(high)}]" for low, high in pairs)
    return f"{answer.text}\n(90 % intervals of the numbers: {found})" if found else answer.text


def _title(temperature: float) -> str:
    return f"temperature {temperature:.12g}" if temperature else "greedy"


def _history(example: Example) -> Sequence[Message]:
    return example.messages[:-1] if example.answered else example.messages


TASK = Task(
    name="samples",
    version=3,
    about="continuations of prompts, greedy and sampled, to read side by side",
    load=examples(check, asks=True),
    ask=ask,
    score=score,
    metrics=(),
    tables=tables,
    source=tuple(Row("built-in prompts", k, {"text": prompt}) for k, prompt in enumerate(PROMPTS, start=1)),
)
