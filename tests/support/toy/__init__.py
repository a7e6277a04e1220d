"""Additions from outside, through the public registries: an objective with settings, a tuning, a row format, ...

`python -m tests.support.toy train|merge|report|eval ...` runs the programs with them. Like any package that adds
something, it registers before the programs' own modules are imported; worker processes import it again by themselves.
"""

from __future__ import annotations

from eval.tasks import TASKS
from eval.tasks.from_yaml import TEXT_METRICS, TextMetric
from tests.support.toy.task import TASK
from train.registry import OBJECTIVES, OPTIMIZERS, TUNINGS, ObjectiveSpec, OptimizerSpec, TuningSpec
from zerotune.data.conversations import Conversation
from zerotune.data.fields import Fields
from zerotune.data.formats import FORMATS, Format


def read_riddle(fields: Fields) -> Conversation:
    """A riddle and its solution as a conversation."""
    turns = [("user", fields.text("riddle")), ("assistant", fields.text("solution"))]
    return Conversation([{"role": role, "content": text} for role, text in turns])


FORMATS["riddle"] = Format(("riddle", "solution"), read_riddle, like="qa")
OBJECTIVES["focal"] = ObjectiveSpec(
    "tests.support.toy.objective:FocalLM",
    formats=OBJECTIVES["causal_lm"].formats,
    metrics={"loss": True},
    section="tests.support.toy.section:FocalConfig",
)
TUNINGS["biases"] = TuningSpec(
    "tests.support.toy.tuning:Biases", merger="tests.support.toy.tuning:Replaced", trains_base=True
)
OPTIMIZERS["sgd"] = OptimizerSpec("tests.support.toy.optimizer:sgd", unused=("beta1", "beta2", "epsilon"))
TASKS[TASK.name] = TASK
TEXT_METRICS["same_length"] = TextMetric(lambda answer, reference: float(len(answer) == len(reference)), is_share=True)
