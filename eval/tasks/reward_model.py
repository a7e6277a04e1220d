"""Reward models: how often the chosen response of a preference pair gets the higher reward."""

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
    """Both responses with their prompt, as texts or messages."""

    id: str
    chosen: Side
    rejected: Side


def load(row: Row) -> PreferencePair:
    """`chosen` and `rejected` after `prompt` (format of TRL) or after `conversations` (format of LLaMA-Factory)."""
    return PreferencePair(row.place, *(_side(row, name) for name in SIDES))


def _side(row: Row, name: str) -> Side:
    value = row.value.get(name)
    if isinstance(value, str):
        return (text_in(row.value, "prompt") if row.value.get("prompt") else "") + text_in(row.value, name)
    response = [value] if isinstance(value, Mapping) else value
    prompt = row.value.get("conversations") or row.value.get("prompt") or []
    if not isinstance(response, (list, tuple)) or not isinstance(prompt, (list, tuple)):
        raise BadExampleError(f"{name} and its prompt must both be text or both be messages")
    messages = [*prompt, *response]
    key = "conversations" if messages and isinstance(messages[0], Mapping) and "from" in messages[0] else "messages"
    found = example(dataclasses.replace(row, value={key: messages, "system": row.value.get("system")}))
    return found.messages


def ask(pair: PreferencePair, prompter: Prompter) -> Sequence[Request]:
    """One request for each side."""
    if len(prompter.labels) != 1:
        raise UserError(
            f"{prompter.name}: not a reward model: its head has {len(prompter.labels)} classes instead of one output"
        )
    return [Classify(prompter.reward_input(side)) for side in (pair.chosen, pair.rejected)]


def score(pair: PreferencePair, answers: Sequence[Answer]) -> Sample:
    """Whether the chosen response gets the higher reward, and by how much."""
    chosen, rejected = (answer.logits[0] for answer in answers if isinstance(answer, Classified))
    shown: dict[str, Any] = {
        "text": _as_text(pair.chosen),
        "answer": chosen,
        "reference": f"{_as_text(pair.rejected)}\n{rejected:.4g}",
    }
    return Sample(pair.id, {"accuracy": float(chosen > rejected), "margin": chosen - rejected}, shown)


def _as_text(side: Side) -> str:
    return side if isinstance(side, str) else "\n".join(f"{message['role']}: {message['content']}" for message in side)


TASK = Task(
    name="reward_model",
    version=1,
    about="preference pairs, by a reward head with one output",
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
