"""Checkpoints with a sequence-classification head: classification, or regression by a head with one output."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.metrics.labels import FEWEST_OF_SQUARES, macro_f1, mcc, pearson, rmse, too_few
from eval.protocols import CorpusMetric, Sample, SampleMetric, Task
from eval.tasks.labelled import by_label, outcome
from zerotune.common.errors import UserError
from zerotune.common.metric_format import CORRELATION, POSITIVE
from zerotune.data.fields import Fields, RowError
from zerotune.data.hub import Hub
from zerotune.data.labelled import class_number, read_labelled, value_of
from zerotune.inference.requests import Answer, Classified, Classify, Request

if TYPE_CHECKING:
    from zerotune.data.raw_row import Row
    from zerotune.inference.prompt import Prompter


@dataclass(frozen=True)
class ClassItem:
    """label: the name of a class, its index, or its index as text.

    `bind` sets labels, the checkpoint's class names, and label_index, the label's index among them.
    """

    id: str
    sentences: tuple[str, ...]
    label: str | int
    labels: tuple[str, ...] = ()
    label_index: int = 0


@dataclass(frozen=True)
class RegressionItem:
    """One sentence or two, and a value."""

    id: str
    sentences: tuple[str, ...]
    value: float


def load(row: Row) -> ClassItem:
    """One sentence or two, and a label: the name or index of a class."""
    read = read_labelled(Fields(row.value))
    if isinstance(read.label, float):
        raise RowError(f"label is {read.label}: neither the name nor the number of a class")
    return ClassItem(row.place, read.sentences, read.label)


def bind(item: ClassItem, prompter: Prompter) -> ClassItem:
    """Find the label among the checkpoint's classes. Raises UserError."""
    names = prompter.labels
    if len(names) < 2:
        raise UserError(f"{prompter.name}: its head has one output, not classes; use the task regression")
    index = class_number(item.label, names)
    if index is not None:
        return dataclasses.replace(item, labels=names, label_index=index)
    raise UserError(
        f"{item.id}: {prompter.name} has no class {item.label!r}; its config.json has id2label "
        f"{', '.join(f'{k}: {name}' for k, name in enumerate(names[:20]))}"
    )


def ask(item: ClassItem | RegressionItem, prompter: Prompter) -> Sequence[Request]:
    """One request for each item."""
    return [Classify(*prompter.classifier_input(item.sentences))]


def score(item: ClassItem, answers: Sequence[Answer]) -> Sample:
    """Predict the class with the highest logit."""
    logits = _outputs(answers)
    return outcome(item.id, item.sentences, item.labels, item.label_index, logits.index(max(logits)))


def load_value(row: Row) -> RegressionItem:
    """One sentence or two, and the number `label`."""
    read = read_labelled(Fields(row.value))
    return RegressionItem(row.place, read.sentences, value_of(read.label))


def one_output(item: RegressionItem, prompter: Prompter) -> RegressionItem:
    """Raise UserError if the checkpoint's head has several outputs."""
    if len(prompter.labels) != 1:
        raise UserError(
            f"{prompter.name}: its head has {len(prompter.labels)} classes, not one output; use sequence_classification"
        )
    return item


def score_value(item: RegressionItem, answers: Sequence[Answer]) -> Sample:
    """Compare the predicted value with the label."""
    (value,) = _outputs(answers)
    shown = {"text": "\n".join(item.sentences), "answer": value, "reference": item.value}
    return Sample(item.id, {"gold": item.value, "predicted": value}, shown)


def _outputs(answers: Sequence[Answer]) -> tuple[float, ...]:
    (answer,) = answers
    assert isinstance(answer, Classified)
    return answer.logits


TASK = Task(
    name="sequence_classification",
    version=1,
    about="classes of texts, by a classification head",
    load=load,
    bind=bind,
    ask=ask,
    score=score,
    metrics=(
        SampleMetric("accuracy", higher_is_better=True, is_share=True),
        CorpusMetric("macro_f1", higher_is_better=True, of=macro_f1, too_few=too_few),
        CorpusMetric("mcc", higher_is_better=True, of=mcc, scale=CORRELATION, too_few=too_few),
    ),
    tables=by_label,
    head="sequence",
    source=Hub("stanfordnlp/imdb", split="test", name="plain_text", files="{name}/{split}-*.parquet"),
)
REGRESSION = Task(
    name="regression",
    version=1,
    about="values of texts, by a head with one output",
    load=load_value,
    bind=one_output,
    ask=ask,
    score=score_value,
    metrics=(
        CorpusMetric("pearson", higher_is_better=True, of=pearson, scale=CORRELATION),
        CorpusMetric("rmse", higher_is_better=False, of=rmse, scale=POSITIVE, fewest=FEWEST_OF_SQUARES),
    ),
    head="sequence",
    source=Hub("nyu-mll/glue", split="validation", name="stsb"),
)
