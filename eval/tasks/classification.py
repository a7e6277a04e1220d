"""Classification by a language model: the most probable label after "Label:", or the one that it generates there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.metrics.first_label import first_label
from eval.metrics.labels import macro_f1, too_few
from eval.protocols import CorpusMetric, Sample, SampleMetric, Task
from eval.tasks.labelled import by_label, outcome
from zerotune.common.errors import UserError
from zerotune.data.fields import Fields, RowError
from zerotune.data.hub import Hub
from zerotune.data.labelled import label_prompt, read_labelled
from zerotune.inference.requests import Answer, Generate, Generated, Request, Score, Scored

if TYPE_CHECKING:
    from zerotune.data.raw_row import Row
    from zerotune.inference.prompt import Prompter


@dataclass(frozen=True)
class LabelledText:
    """labels: all labels of the data, sorted."""

    id: str
    sentences: tuple[str, ...]
    label: str
    labels: tuple[str, ...] = ()


def load(row: Row) -> LabelledText:
    """One sentence or two, and a label in words."""
    read = read_labelled(Fields(row.value))
    if not isinstance(read.label, str):
        raise RowError("label is a number; a language model needs a label in words")
    return LabelledText(row.place, read.sentences, read.label)


def arrange(items: list[LabelledText]) -> list[LabelledText]:
    """Give every item the labels of all rows. Raises UserError if there is only one."""
    labels = tuple(sorted({item.label for item in items}))
    if len(labels) == 1:
        raise UserError(f"all rows have the label {labels[0]!r}; at least two labels are needed")
    return [dataclasses.replace(item, labels=labels) for item in items]


def ask(item: LabelledText, prompter: Prompter) -> Sequence[Request]:
    """One request for each label, with an end token if one label is the start of another."""
    prefix, labels = prompter.choices(label_prompt(item.sentences), item.labels)
    return [Score(prefix, label) for label in prompter.with_ends(labels, item.labels)]


def score(item: LabelledText, answers: Sequence[Answer]) -> Sample:
    """Predict the label with the highest total probability; of equals the first."""
    log_probs = [answer.log_prob for answer in answers if isinstance(answer, Scored)]
    label = item.labels.index(item.label)
    sample = outcome(item.id, item.sentences, item.labels, label, log_probs.index(max(log_probs)))
    shown = {**sample.shown, "log_probs": dict(zip(item.labels, log_probs, strict=True))}
    return dataclasses.replace(sample, shown=shown)


def ask_generated(item: LabelledText, prompter: Prompter) -> Sequence[Request]:
    """The prompt up to "Label:"; the model generates the space too, which tokenizers join to the next word."""
    prefix, _ = prompter.choices(label_prompt(item.sentences), [])
    return [Generate(prefix, prompter.max_new_tokens, prompter.stop_ids)]


def score_generated(item: LabelledText, answers: Sequence[Answer]) -> Sample:
    """Predict the label at the start of the answer."""
    (answer,) = answers
    assert isinstance(answer, Generated)
    label = item.labels.index(item.label)
    sample = outcome(item.id, item.sentences, item.labels, label, first_label(answer.text, item.labels))
    return dataclasses.replace(sample, shown={**sample.shown, "written": answer.text})


TASK = Task(
    name="classification",
    version=2,
    about="the label with the highest probability after the sentence",
    load=load,
    arrange=arrange,
    ask=ask,
    score=score,
    metrics=(
        SampleMetric("accuracy", higher_is_better=True, is_share=True),
        CorpusMetric("macro_f1", higher_is_better=True, of=macro_f1, too_few=too_few),
    ),
    tables=by_label,
    source=Hub(
        "nyu-mll/glue",
        split="validation",
        name="mrpc",
        columns={
            "sentence1": "sentence1",
            "sentence2": "sentence2",
            "label": "{{ label | replace('_', ' ') }}",  # words for a language model: not equivalent
        },
    ),
)
GENERATION = dataclasses.replace(
    TASK,
    name="classification_generation",
    about="the label generated after the sentence",
    ask=ask_generated,
    score=score_generated,
    max_new_tokens=10,
)
