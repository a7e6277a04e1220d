"""Reward models: how often the chosen response of a preference pair gets the higher reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.protocols import Sample, SampleMetric, Task
from zerotune.common.errors import UserError
from zerotune.common.metric_format import UNBOUNDED
from zerotune.data.conversations import said_in
from zerotune.data.fields import Fields
from zerotune.data.hub import Hub
from zerotune.data.preference import Side, read_preference
from zerotune.inference.requests import Answer, Classified, Classify, Request

if TYPE_CHECKING:
    from zerotune.data.raw_row import Row
    from zerotune.inference.prompt import Prompter


@dataclass(frozen=True)
class PreferencePair:
    """Both responses with their prompt, as texts or messages."""

    id: str
    chosen: Side
    rejected: Side


def load(row: Row) -> PreferencePair:
    """Read both sides. If they are equal, the chosen one does not count as preferred."""
    read = read_preference(Fields(row.value))
    return PreferencePair(row.place, read.chosen, read.rejected)


def ask(pair: PreferencePair, prompter: Prompter) -> Sequence[Request]:
    """One request for each side."""
    if len(prompter.labels) != 1:
        raise UserError(
            f"{prompter.name}: not a reward model: its head has {len(prompter.labels)} classes instead of one output"
        )
    return [Classify(_encode(side, prompter)) for side in (pair.chosen, pair.rejected)]


def score(pair: PreferencePair, answers: Sequence[Answer]) -> Sample:
    """Whether the chosen response gets the higher reward, and by how much."""
    chosen, rejected = (answer.logits[0] for answer in answers if isinstance(answer, Classified))
    shown: dict[str, Any] = {
        "text": _as_text(pair.chosen),
        "answer": chosen,
        "reference": f"{_as_text(pair.rejected)}\n{rejected:.4g}",
    }
    return Sample(pair.id, {"accuracy": float(chosen > rejected), "margin": chosen - rejected}, shown)


def _encode(side: Side, prompter: Prompter) -> tuple[int, ...]:
    return prompter.reward_input(side) if isinstance(side, str) else prompter.reward_input(side.messages, side.tools)


def _as_text(side: Side) -> str:
    if isinstance(side, str):
        return side
    return "\n".join(f"{message['role']}: {said_in(message)}" for message in side.messages)


TASK = Task(
    name="reward_model",
    version=2,
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
