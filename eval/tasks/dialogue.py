"""Multi-turn conversations; each turn follows the model's own earlier responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from eval.metrics.consistency import consistency, unrepeated
from eval.metrics.similarity import MATCH_THRESHOLD, similarity
from eval.protocols import Sample, SampleMetric, Table, Task
from zerotune.data.conversations import Message
from zerotune.data.fields import RowError
from zerotune.data.hub import Hub
from zerotune.data.rows import Example, examples
from zerotune.inference.reasoning import without_reasoning
from zerotune.inference.requests import Answer, Generate, Generated, Request

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter

NO_ROOM = "(not asked: the context has no room for this turn)"


def check(example: Example) -> Example:
    """Accept conversations with at least two text responses."""
    if len(_turns(example)) < 2:
        raise RowError("a dialogue needs at least two text responses")
    return example


def ask(example: Example, prompter: Prompter) -> Sequence[Request]:
    """The first turn."""
    return _next(example, [], prompter)


def follow(example: Example, answers: Sequence[Answer], prompter: Prompter) -> Sequence[Request]:
    """The next turn, after the model's own responses so far."""
    return _next(example, _texts(answers), prompter) if len(answers) < len(_turns(example)) else ()


def score(example: Example, answers: Sequence[Answer]) -> Sample:
    """Similarity of each turn to its reference, and consistency of the turns.

    Turns that did not fit into the context count as empty answers.
    """
    references = [without_reasoning(example.messages[k]["content"]) for k in _turns(example)]
    responses = _texts(answers)
    responses += [""] * (len(references) - len(responses))
    similarities = [similarity(*pair) for pair in zip(responses, references, strict=True)]
    values = {
        "turn_similarity": mean(similarities),
        "turn_match": mean(float(value > MATCH_THRESHOLD) for value in similarities),
        "consistency": consistency(responses, references, similarity),
        "unrepeated": unrepeated(responses, references, similarity),
    }
    prompts = [example.messages[k - 1]["content"] for k in _turns(example)]
    shown = [*responses[: len(answers)], *[NO_ROOM] * (len(references) - len(answers))]
    turns = [
        {"asked": prompt, "answer": text, "reference": reference, "similarity": value}
        for prompt, text, reference, value in zip(prompts, shown, references, similarities, strict=True)
    ]
    return Sample(example.id, values, {"turns": turns}, {"subset": example.subset} if example.subset else {})


def texts_of(sample: Sample) -> tuple[list[str], list[str]]:
    """A sample's answers ("" for turns that did not fit into the context) and its references."""
    turns = sample.shown["turns"]
    answers = ["" if turn["answer"] == NO_ROOM else turn["answer"] for turn in turns]
    return answers, [turn["reference"] for turn in turns]


def tables(samples: Sequence[Sample]) -> list[Table]:
    """Results by turn number, which show whether a model degrades over a conversation."""
    turns: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        for number, turn in enumerate(sample.shown["turns"], start=1):
            turns.setdefault(number, []).append(turn)
    rows = [
        (
            number,
            len(found),
            mean(turn["similarity"] for turn in found),
            mean(float(turn["similarity"] > MATCH_THRESHOLD) for turn in found),
            sum(turn["answer"] == NO_ROOM for turn in found),
        )
        for number, found in sorted(turns.items())
    ]
    head = ("turn", "dialogues", "similarity", f"share above {MATCH_THRESHOLD}", "no room for it")
    return [Table("By turn", head, rows, shared=2, shares=(2, 3))]


def _turns(example: Example) -> list[int]:
    """Indices of the assistant messages to generate: text, and not marked as context. The others are given."""
    return [k for k in example.turns if "tool_calls" not in example.messages[k]]


def _texts(answers: Sequence[Answer]) -> list[str]:
    return [answer.text for answer in answers if isinstance(answer, Generated)]


def _next(example: Example, responses: Sequence[str], prompter: Prompter) -> Sequence[Request]:
    turns = _turns(example)
    own = dict(zip(turns, responses, strict=False))
    history: list[Message] = [
        {"role": "assistant", "content": own[k]} if k in own else message
        for k, message in enumerate(example.messages[: turns[len(responses)]])
    ]
    return [Generate(prompter.chat_prompt(history, example.tools), prompter.max_new_tokens, prompter.stop_ids)]


TASK = Task(
    name="dialogue",
    version=4,
    about="multi-turn conversations, each turn after the model's own responses",
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
        where=(  # at least two turns, and no blank message
            "messages | selectattr('role', 'eq', 'assistant') | list | length > 1"
            " and not messages | map(attribute='content') | map('trim') | reject | list"
        ),
    ),
)
