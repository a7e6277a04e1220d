"""An addition from outside: an objective, a tuning, a row format, a task and a metric, through the public registries.

`python -m tests.support.toy train|eval|merge ...` runs the programs with them. Like any package that adds something,
it registers before the programs' own modules are imported; worker processes import it again by themselves.
"""

from __future__ import annotations

from eval.tasks import TASKS
from eval.tasks.from_yaml import TEXT_METRICS, TextMetric
from tests.support.toy.task import TASK
from train.registry import OBJECTIVES, TUNINGS, ObjectiveSpec, TuningSpec
from zerotune.data.conversations import Conversation
from zerotune.data.fields import Fields
from zerotune.data.formats import FORMATS, Format


def read_riddle(fields: Fields) -> Conversation:
    """A riddle and its solution as a conversation."""
    turns = [("user", fields.text("riddle")), ("assistant", fields.text("solution"))]
    return Conversation([{"role": role, "content": text} for role, text in turns])


FORMATS["riddle"] = Format(("riddle", "solution"), read_riddle, like="qa")
OBJECTIVES["focal"] = ObjectiveSpec("tests.support.toy.objective:FocalLM", OBJECTIVES["causal_lm"].formats)
TUNINGS["biases"] = TuningSpec(
    "tests.support.toy.tuning:Biases", merger="tests.support.toy.tuning:Replaced", trains_base=True
)
TASKS[TASK.name] = TASK
TEXT_METRICS["same_length"] = TextMetric(lambda answer, reference: float(len(answer) == len(reference)), is_share=True)
