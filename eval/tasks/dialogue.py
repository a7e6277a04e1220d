"""Conversations of several turns, each answered on the model's own history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from eval.metrics.consistency import consistency, unrepeated
from eval.metrics.similarity import ALIKE, similarity
from eval.protocols import Sample, SampleMetric, Table, Task
from zerotune.data.hub import Hub
from zerotune.data.rows import BadExampleError, Example, Message, examples
from zerotune.inference.requests import Answer, Generate, Generated, Request

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter

NO_ROOM = "(not asked: the context has no room for this turn)"


def check(example: Example) -> Example:
    """Conversations with at least two turns of the assistant."""
    if len(_turns(example)) < 2:
        raise BadExampleError("a dialogue needs at least two turns of the assistant")
    return example


def ask(example: Example, prompter: Prompter) -> Sequence[Request]:
    """The first turn."""
    return _next(example, [], prompter)


def follow(example: Example, answers: Sequence[Answer], prompter: Prompter) -> Sequence[Request]:
    """The next turn, after what the model itself has said so far."""
    return _next(example, _texts(answers), prompter) if len(answers) < len(_turns(example)) else ()


def score(example: Example, answers: Sequence[Answer]) -> Sample:
    """Similarity of each turn with the reference, and how the turns hang together.

    Turns that the context had no room for count as empty answers.
    """
    references = [example.messages[k]["content"] for k in _turns(example)]
    said = _texts(answers)
    said += [""] * (len(references) - len(said))
    alike = [similarity(text, wanted) for text, wanted in zip(said, references, strict=True)]
    values = {
        "turn_similarity": mean(alike),
        "turn_match": mean(float(value > ALIKE) for value in alike),
        "consistency": consistency(said, references, similarity),
        "unrepeated": unrepeated(said, references, similarity),
    }
    questions = [example.messages[k - 1]["content"] for k in _turns(example)]
    shown = [*said[: len(answers)], *[NO_ROOM] * (len(references) - len(answers))]
    lines = zip(questions, shown, references, alike, strict=True)
    turns = [
        {"asked": question, "answer": text, "reference": wanted, "similarity": value}
        for question, text, wanted, value in lines
    ]
    return Sample(example.id, values, {"turns": turns}, {"subset": example.subset} if example.subset else {})


def texts_of(sample: Sample) -> tuple[list[str], list[str]]:
    """A sample's answers, empty where there was no room for one, and the references."""
    turns = sample.shown["turns"]
    answers = ["" if turn["answer"] == NO_ROOM else turn["answer"] for turn in turns]
    return answers, [turn["reference"] for turn in turns]


def tables(samples: Sequence[Sample]) -> list[Table]:
    """How well the first, the second ... turn is answered: whether a model loses the thread."""
    turns: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        for number, turn in enumerate(sample.shown["turns"], start=1):
            turns.setdefault(number, []).append(turn)
    rows = [
        (
            number,
            len(found),
            mean(turn["similarity"] for turn in found),
            mean(float(turn["similarity"] > ALIKE) for turn in found),
            sum(turn["answer"] == NO_ROOM for turn in found),
        )
        for number, found in sorted(turns.items())
    ]
    head = ("turn", "dialogues", "similarity", f"share above {ALIKE}", "no room for it")
    return [Table("By turn", head, rows, shared=2, shares=(2, 3))]


def _turns(example: Example) -> list[int]:
    """Places of the assistant's messages."""
    return [k for k, message in enumerate(example.messages) if message["role"] == "assistant"]


def _texts(answers: Sequence[Answer]) -> list[str]:
    return [answer.text for answer in answers if isinstance(answer, Generated)]


def _next(example: Example, said: Sequence[str], prompter: Prompter) -> Sequence[Request]:
    turns = _turns(example)
    own = dict(zip(turns, said, strict=False))
    history: list[Message] = [
        {"role": "assistant", "content": own[k]} if k in own else message
        for k, message in enumerate(example.messages[: turns[len(said)]])
    ]
    return [Generate(prompter.chat_prompt(history), prompter.max_new_tokens, prompter.stop_ids)]


TASK = Task(
    name="dialogue",
    version=3,
    about="several turns, each generated on the model's own history",
    load=examples(check),
    ask=ask,
    score=score,
    metrics=(
        SampleMetric("turn_similarity", higher_is_better=True),
        SampleMetric("turn_match", higher_is_better=True),
        SampleMetric("consistency", higher_is_better=True),
        SampleMetric("unrepeated", higher_is_better=True),
    ),
    follow=follow,
    tables=tables,
    source=Hub(
        "HuggingFaceH4/ultrachat_200k",
        split="test_sft",
        files="data/{split}-*.parquet",
        columns={"messages": "messages"},
        where=(  # at least two turns, and no message of nothing but space
            "messages | selectattr('role', 'eq', 'assistant') | list | length > 1"
            " and not messages | map(attribute='content') | map('trim') | reject | list"
        ),
    ),
)
