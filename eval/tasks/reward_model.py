"""Reward models by preferences: how often the answer that people preferred gets the higher reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.protocols import Sample, SampleMetric, Task
from zerotune.common.errors import UserError
from zerotune.common.scale import UNBOUNDED
from zerotune.data.conversations import said_in
from zerotune.data.fields import Fields
from zerotune.data.hub import Hub
from zerotune.data.preference import Side, read_preference
from zerotune.inference.requests import Answer, Classified, Classify, Request

if TYPE_CHECKING:
    from zerotune.data.readers import Row
    from zerotune.inference.prompt import Prompter


@dataclass(frozen=True)
class Pair:
    """Both sides with what stands before them: texts, or messages."""

    id: str
    chosen: Side
    rejected: Side


def load(row: Row) -> Pair:
    """Both sides, equal ones too: of such the chosen one is not preferred."""
    read = read_preference(Fields(row.value))
    return Pair(row.place, read.chosen, read.rejected)


def ask(pair: Pair, prompter: Prompter) -> Sequence[Request]:
    """Both sides whole."""
    if len(prompter.labels) != 1:
        raise UserError(
            f"{prompter.name}: its head has {len(prompter.labels)} classes, not one output: no reward model"
        )
    return [Classify(_encoded(side, prompter)) for side in (pair.chosen, pair.rejected)]


def score(pair: Pair, answers: Sequence[Answer]) -> Sample:
    """Whether the chosen one gets more, and how much."""
    chosen, rejected = (answer.logits[0] for answer in answers if isinstance(answer, Classified))
    shown: dict[str, Any] = {
        "text": _shown(pair.chosen),
        "answer": chosen,
        "reference": f"{_shown(pair.rejected)}\n{rejected:.4g}",
    }
    return Sample(pair.id, {"accuracy": float(chosen > rejected), "margin": chosen - rejected}, shown)


def _encoded(side: Side, prompter: Prompter) -> tuple[int, ...]:
    return prompter.whole(side) if isinstance(side, str) else prompter.whole(side.messages, side.tools)


def _shown(side: Side) -> str:
    if isinstance(side, str):
        return side
    return "\n".join(f"{message['role']}: {said_in(message)}" for message in side.messages)


TASK = Task(
    name="reward_model",
    version=2,
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
