"""Reward models by preferences: how often the answer that people preferred gets the higher reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.protocols import Sample, SampleMetric, Task
from zerotune.common.errors import UserError
from zerotune.common.scale import UNBOUNDED
from zerotune.data.hub import Hub
from zerotune.data.rows import BadExampleError, example, text_in
from zerotune.inference.requests import Answer, Classified, Classify, Request

if TYPE_CHECKING:
    from zerotune.data.readers import Row
    from zerotune.inference.prompt import Prompter

SIDES = ("chosen", "rejected")
Side = str | tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class PreferencePair:
    """Both sides with what stands before them: texts, or messages."""

    id: str
    chosen: Side
    rejected: Side


def load(row: Row) -> PreferencePair:
    """`chosen` and `rejected` behind `prompt`, as TRL writes them, or behind `conversations`, as LLaMA-Factory does."""
    return PreferencePair(row.place, *(_side(row, name) for name in SIDES))


def _side(row: Row, name: str) -> Side:
    value = row.value.get(name)
    if isinstance(value, str):
        return (text_in(row.value, "prompt") if row.value.get("prompt") else "") + text_in(row.value, name)
    said = [value] if isinstance(value, Mapping) else value
    before = row.value.get("conversations") or row.value.get("prompt") or []
    if not isinstance(said, (list, tuple)) or not isinstance(before, (list, tuple)):
        raise BadExampleError(f"{name} is neither text nor messages behind a prompt of the same kind")
    messages = [*before, *said]
    key = "conversations" if messages and isinstance(messages[0], Mapping) and "from" in messages[0] else "messages"
    found = example(dataclasses.replace(row, value={key: messages, "system": row.value.get("system")}))
    return found.messages


def ask(pair: PreferencePair, prompter: Prompter) -> Sequence[Request]:
    """Both sides whole."""
    if len(prompter.labels) != 1:
        raise UserError(
            f"{prompter.name}: its head has {len(prompter.labels)} classes, not one output: no reward model"
        )
    return [Classify(prompter.reward_input(side)) for side in (pair.chosen, pair.rejected)]


def score(pair: PreferencePair, answers: Sequence[Answer]) -> Sample:
    """Whether the chosen one gets more, and how much."""
    chosen, rejected = (answer.logits[0] for answer in answers if isinstance(answer, Classified))
    shown: dict[str, Any] = {
        "text": _shown(pair.chosen),
        "answer": chosen,
        "reference": f"{_shown(pair.rejected)}\n{rejected:.4g}",
    }
    return Sample(pair.id, {"accuracy": float(chosen > rejected), "margin": chosen - rejected}, shown)


def _shown(side: Side) -> str:
    return side if isinstance(side, str) else "\n".join(f"{message['role']}: {message['content']}" for message in side)


TASK = Task(
    name="reward_model",
    version=1,
    about="the preferred of two answers by a head with one output",
    load=load,
    ask=ask,
    score=score,
    metrics=(
        SampleMetric("accuracy", higher_is_better=True, is_share=True),
        SampleMetric("margin", higher_is_better=True, scale=UNBOUNDED),
    ),
    head="sequence",
    source=Hub("trl-lib/ultrafeedback_binarized", split="test"),
)
