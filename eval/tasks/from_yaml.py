"""Builds tasks from YAML files. docs/own-task.md has an example of each kind."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.metrics.contains import contains
from eval.metrics.exact_match import exact_match
from eval.metrics.rouge import rouge
from eval.metrics.similarity import partial_match
from eval.protocols import Metric, Sample, SampleMetric, Task
from eval.tasks import perplexity
from eval.tasks.task_file import Index, TaskFile, read_task_file
from zerotune.data.conversations import Message
from zerotune.data.fields import RowError
from zerotune.data.raw_row import Row, type_name
from zerotune.data.row_templates import Cell
from zerotune.data.rows import Example
from zerotune.inference.requests import Answer, Generate, Generated, Request, Score, Scored

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter

NUMBER = re.compile("[0-9]{1,3}(?:[.]0+)?")  # a numeric column with missing values is read as floats: 2.0
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class TextMetric:
    """A function of one generated answer and one reference; of several references the best value counts."""

    of: Callable[[str, str], float]
    is_share: bool


TEXT_METRICS: dict[str, TextMetric] = {
    "exact_match": TextMetric(exact_match, is_share=True),
    "partial_match": TextMetric(partial_match, is_share=True),
    "rougeL": TextMetric(lambda prediction, reference: rouge(prediction, reference)["rougeL"], is_share=False),
    "contains": TextMetric(contains, is_share=True),
}
CHOICE_METRICS = ("accuracy", "accuracy_by_byte")
METRICS: Mapping[str, Collection[str]] = {
    "generate": TEXT_METRICS.keys(),
    "choices": CHOICE_METRICS,
    "perplexity": tuple(metric.name for metric in perplexity.TASK.metrics),
}


@dataclass(frozen=True)
class YamlTaskItem:
    """A row of a task of kind generate (with references) or choices (with the index of the correct choice)."""

    id: str
    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    correct: int = 0
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The user message."""
        return str(self.messages[-1]["content"])


def task_from_yaml(path: Path) -> Task[Any]:
    """Build the task of a file. Raises UserError with file:line."""
    file = read_task_file(path, METRICS)
    return {"generate": _generate, "choices": _choices, "perplexity": _perplexity}[file.kind](file)


def _generate(file: TaskFile) -> Task[YamlTaskItem]:
    def load(row: Row) -> YamlTaskItem:
        return dataclasses.replace(_item(file, row), references=_texts(file, "reference", row))

    def ask(item: YamlTaskItem, prompter: Prompter) -> Sequence[Request]:
        ids = prompter.chat_prompt(item.messages) if file.chat else prompter.document(_raw(item)).ids
        return [Generate(ids, prompter.max_new_tokens, prompter.stop_ids, file.stop)]

    def score(item: YamlTaskItem, answers: Sequence[Answer]) -> Sample:
        (answer,) = answers
        assert isinstance(answer, Generated)
        read = answer.text if file.extract is None else _extracted(file, answer.text)
        values = {name: max(TEXT_METRICS[name].of(read, r) for r in item.references) for name in file.metrics}
        shown = {"prompt": item.prompt, "answer": answer.text, "reference": " | ".join(item.references)}
        if file.extract is not None:
            shown["read"] = read
        return Sample(item.id, values, shown | {"finished": answer.finished}, item.groups)

    metrics = tuple(SampleMetric(name, True, TEXT_METRICS[name].is_share) for name in file.metrics)
    return _task(file, load, ask, score, metrics)


def _choices(file: TaskFile) -> Task[YamlTaskItem]:
    def load(row: Row) -> YamlTaskItem:
        choices = _texts(file, "choices", row)
        if len(choices) < 2:
            raise RowError("choices: has only one; at least two are needed")
        correct = _correct_index(choices, file.cells["answer"](row.value))
        return dataclasses.replace(_item(file, row), choices=choices, correct=correct)

    def ask(item: YamlTaskItem, prompter: Prompter) -> Sequence[Request]:
        scores = [_choice(file, item, choice, prompter) for choice in item.choices]
        if file.chat:  # each ends with an end-of-turn token already
            return scores
        continuations = prompter.with_ends([score.continuation_ids for score in scores], item.choices)
        return [dataclasses.replace(one, continuation_ids=ids) for one, ids in zip(scores, continuations, strict=True)]

    def score(item: YamlTaskItem, answers: Sequence[Answer]) -> Sample:
        scored = [answer for answer in answers if isinstance(answer, Scored)]
        chosen = {
            "accuracy": _largest([answer.log_prob for answer in scored]),
            "accuracy_by_byte": _largest([answer.log_prob / max(answer.bytes, 1) for answer in scored]),
        }
        shown = {
            "prompt": item.prompt,
            "answer": item.choices[chosen[file.metrics[0]]],
            "reference": item.choices[item.correct],
            "log_probs": [round(answer.log_prob, 4) for answer in scored],
        }
        return Sample(item.id, {name: float(chosen[name] == item.correct) for name in file.metrics}, shown, item.groups)

    metrics = tuple(SampleMetric(name, True, is_share=True) for name in file.metrics)
    return _task(file, load, ask, score, metrics)


def _perplexity(file: TaskFile) -> Task[Any]:
    """The built-in task perplexity on the texts of a file."""

    def load(row: Row) -> Example:
        (text,) = _texts(file, "text", row)
        return Example(row.place, text=text)

    metrics = tuple(metric for metric in perplexity.TASK.metrics if metric.name in file.metrics)
    return dataclasses.replace(
        perplexity.TASK,
        name=file.name,
        version=file.version,
        about=file.about,
        load=load,
        metrics=metrics,
        source=file.source,
    )


def _task(
    file: TaskFile,
    load: Callable[[Row], YamlTaskItem],
    ask: Callable[[YamlTaskItem, Prompter], Sequence[Request]],
    score: Callable[[YamlTaskItem, Sequence[Answer]], Sample],
    metrics: tuple[Metric, ...],
) -> Task[YamlTaskItem]:
    return Task(
        name=file.name,
        version=file.version,
        about=file.about,
        load=load,
        ask=ask,
        score=score,
        metrics=metrics,
        source=file.source,
        max_new_tokens=file.max_new_tokens,
        own_columns=True,
    )


def _item(file: TaskFile, row: Row) -> YamlTaskItem:
    system = [
        {"role": "system", "content": _text(file.cells[key], row, key)} for key in ("system",) if key in file.cells
    ]
    user = {"role": "user", "content": _text(file.cells["prompt"], row, "prompt")}
    groups = {name: _text(cell, row, f"groups.{name}") for name, cell in file.groups.items()}
    return YamlTaskItem(row.place, (*system, user), groups=groups)


def _text(cell: Cell, row: Row, key: str) -> str:
    return _checked(cell(row.value), key)


def _checked(value: Any, key: str) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        raise RowError(f"{key}: the column holds {type_name(value)}, not text")
    if not str(value).strip():
        raise RowError(f"{key}: is empty")
    return str(value)


def _texts(file: TaskFile, key: str, row: Row) -> tuple[str, ...]:
    """One text or several: from a column that contains a list, or from a list of columns and templates."""
    value = file.cells[key](row.value)
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise RowError(f"{key}: the list is empty")
    return tuple(_checked(inner, key) for inner in values)


def _correct_index(choices: Sequence[str], answer: Any) -> int:
    """Index of the correct choice, which `answer` gives as text, letter or number from 0, in any type.

    Raises RowError if these differ: for choices 1, 2, 3, 4, the answer "2" may be the second or the third.
    """
    if isinstance(answer, Index):
        if not 0 <= answer < len(choices):
            raise RowError(f"answer: {int(answer)} is not a choice's number from 0 to {len(choices) - 1}")
        return answer
    text = str(answer).strip()
    found = {f"the text of choice {k}": k for k, choice in enumerate(choices) if choice.strip() == text}
    letter = LETTERS.find(unicodedata.normalize("NFKC", text).upper()) if len(text) == 1 else -1
    if 0 <= letter < len(choices):
        found["a letter"] = letter
    if not isinstance(answer, bool) and NUMBER.fullmatch(text) and int(float(text)) < len(choices):
        found["a number from 0"] = int(float(text))
    if not found:
        raise RowError(f"answer: {text!r} is neither a choice nor the letter or number (from 0) of one")
    if len({choices[k] for k in found.values()}) > 1:
        readings = ", ".join(f"{name} ({choices[k]!r})" for name, k in found.items())
        raise RowError(
            f"answer: {text!r} can mean {readings}; use letters, for example "
            "\"{{ 'ABCD'[answer | int] }}\" if the column has numbers from 0"
        )
    return next(iter(found.values()))


def _raw(item: YamlTaskItem) -> str:
    return "\n\n".join(message["content"] for message in item.messages)


def _choice(file: TaskFile, item: YamlTaskItem, choice: str, prompter: Prompter) -> Score:
    if file.chat:
        passage = prompter.assistant_turns([*item.messages, {"role": "assistant", "content": choice}])[-1]
        return Score(passage.ids[: passage.first], passage.ids[passage.first :], passage.bytes)
    # Not `prompter.choices`: it scores white space at the end of the prompt with the choice, and if a token spans the
    # boundary, as in Chinese, its token ids differ from those of the whole text.
    prompt = prompter.document(_raw(item)).ids
    whole = prompter.document(_raw(item) + file.separator + choice).ids
    shortest = min(len(prompt), len(whole))
    first = next((k for k, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), shortest)
    first = min(max(first, 1), len(whole) - 1)  # a token that spans the boundary is scored
    return Score(whole[:first], whole[first:], len(choice.encode()))


def _extracted(file: TaskFile, text: str) -> str:
    """The first group, or else the whole, of the last match; "" without a match."""
    assert file.extract is not None
    found = list(file.extract.finditer(text))
    if not found:
        return ""
    return (found[-1].group(1) if file.extract.groups else found[-1].group()) or ""


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
