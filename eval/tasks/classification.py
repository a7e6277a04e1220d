"""Labels as words of a language model: the likeliest label behind "Label:", or the one that it writes there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.metrics.first_label import first_label
from eval.metrics.labels import macro_f1, too_few
from eval.protocols import CorpusMetric, Sample, SampleMetric, Task
from eval.tasks.labelled import by_label, outcome, sentences_in
from zerotune.common.errors import UserError
from zerotune.data.hub import Hub
from zerotune.data.label_prompt import label_prompt
from zerotune.data.rows import BadExampleError, text_in
from zerotune.inference.requests import Answer, Generate, Generated, Request, Score, Scored

if TYPE_CHECKING:
    from zerotune.data.readers import Row
    from zerotune.inference.prompt import Prompter


@dataclass(frozen=True)
class LabelledText:
    """labels: all that occur in the data, sorted."""

    id: str
    sentences: tuple[str, ...]
    label: str
    labels: tuple[str, ...] = ()


def load(row: Row) -> LabelledText:
    """A sentence (or two) and a label in words."""
    if isinstance(row.value.get("label"), int):
        raise BadExampleError("label is a number or true or false; a language model needs the label's words")
    return LabelledText(row.place, sentences_in(row.value), text_in(row.value, "label").strip())


def arrange(items: list[LabelledText]) -> list[LabelledText]:
    """Every row chooses among the labels of all rows. Raises UserError where there is only one."""
    labels = tuple(sorted({item.label for item in items}))
    if len(labels) == 1:
        raise UserError(f"all rows have the label {labels[0]!r}: there is nothing to choose from")
    return [dataclasses.replace(item, labels=labels) for item in items]


def ask(item: LabelledText, prompter: Prompter) -> Sequence[Request]:
    """One request for each label; with the end token, where one label begins another."""
    prefix, labels = prompter.choices(label_prompt(item.sentences), item.labels)
    return [Score(prefix, label) for label in prompter.with_ends(labels, item.labels)]


def score(item: LabelledText, answers: Sequence[Answer]) -> Sample:
    """The most probable label as a whole; of two that are equally probable the first."""
    log_probs = [answer.log_prob for answer in answers if isinstance(answer, Scored)]
    gold = item.labels.index(item.label)
    sample = outcome(item.id, item.sentences, item.labels, gold, log_probs.index(max(log_probs)))
    shown = {**sample.shown, "log_probs": dict(zip(item.labels, log_probs, strict=True))}
    return dataclasses.replace(sample, shown=shown)


def ask_to_write(item: LabelledText, prompter: Prompter) -> Sequence[Request]:
    """The prompt up to "Label:"; the model writes the space too, which tokenizers join to the word behind it."""
    prefix, _ = prompter.choices(label_prompt(item.sentences), [])
    return [Generate(prefix, prompter.max_new_tokens, prompter.stop_ids)]


def score_written(item: LabelledText, answers: Sequence[Answer]) -> Sample:
    """The label with which the answer begins."""
    (answer,) = answers
    assert isinstance(answer, Generated)
    gold = item.labels.index(item.label)
    sample = outcome(item.id, item.sentences, item.labels, gold, first_label(answer.text, item.labels))
    return dataclasses.replace(sample, shown={**sample.shown, "written": answer.text})


TASK = Task(
    name="classification",
    version=2,
    about="label words by their probability behind the sentence",
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
            "label": "{{ label | replace('_', ' ') }}",  # words, as a language model writes them: not equivalent
        },
    ),
)
GENERATION = dataclasses.replace(
    TASK,
    name="classification_generation",
    about="label words generated behind the sentence",
    ask=ask_to_write,
    score=score_written,
    max_new_tokens=10,
)
