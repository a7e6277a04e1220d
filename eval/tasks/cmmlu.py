"""CMMLU (arXiv:2306.09212): Chinese multiple-choice questions of 67 subjects, by log-likelihood or generation.

Prompts equal those of the task cmmlu of lm-evaluation-harness, so that its results are comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath
from statistics import fmean
from typing import TYPE_CHECKING

from eval.metrics.letters import read_letter
from eval.protocols import Metric, Sample, SampleMetric, Table, Task
from eval.tasks.cmmlu_subjects import CHINA_SPECIFIC, SUBJECTS
from zerotune.common.errors import UserError
from zerotune.data.fields import Fields, RowError
from zerotune.data.hub import Hub
from zerotune.data.raw_row import Row
from zerotune.inference.requests import Answer, Generate, Generated, Request, Score, Scored

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter

LETTERS = "ABCD"
SHOTS = 5
SHOTS_SPLIT = "dev"
SOURCE = Hub(  # the original needs a loading script; the hub's converted copy does not
    "haonan-li/cmmlu",
    split="dev,test",
    name=",".join(SUBJECTS),
    revision="refs/convert/parquet",
    files="{name}/{split}/*.parquet",
)
ACCURACY = SampleMetric("accuracy", higher_is_better=True, is_share=True)


@dataclass(frozen=True)
class MultipleChoiceItem:
    """A question. text: question and options, up to the position of the letter. context: few-shot examples."""

    id: str
    subject: str
    split: str
    text: str
    answer: str
    context: str = ""


def load(row: Row) -> MultipleChoiceItem:
    """Subject and split come from the path: SPLIT/SUBJECT.csv as published, or .../SUBJECT/SPLIT as on the hub."""
    path = PurePath(row.file)
    folder = path.parent.name
    subject, split = (folder, path.stem) if folder in SUBJECTS else (path.stem, folder)
    if subject not in SUBJECTS:
        raise RowError(f"{subject} is none of CMMLU's 67 subjects; name each file after its subject")
    answer = Fields(row.value).text("Answer").strip()
    if answer not in LETTERS:
        raise RowError(f"Answer is {answer!r}, not A, B, C or D")
    options = "".join(f"{name}. {Fields(row.value).text(name)}\n" for name in LETTERS)
    question = f"{Fields(row.value).text('Question').strip()}\n{options}答案："
    return MultipleChoiceItem(row.place, subject, split, question, answer)


def arrange(items: list[MultipleChoiceItem], shots: int) -> list[MultipleChoiceItem]:
    """The questions outside the dev split, each after the first `shots` dev questions of its subject."""
    examples: dict[str, list[MultipleChoiceItem]] = {}
    for item in items:
        if item.split == SHOTS_SPLIT:
            examples.setdefault(item.subject, []).append(item)
    test_items = [item for item in items if item.split != SHOTS_SPLIT]
    contexts = {
        subject: _context(subject, examples.get(subject, []), shots) for subject in {q.subject for q in test_items}
    }
    return [replace(item, context=contexts[item.subject]) for item in test_items]


def _context(subject: str, examples: Sequence[MultipleChoiceItem], shots: int) -> str:
    if len(examples) < shots:
        raise UserError(
            f"cmmlu: {len(examples)} of {shots} example rows for {subject}: name the folder that contains "
            f"dev/{subject}.csv beside test/, or use the task cmmlu_0shot"
        )
    few_shot = "".join(f"{example.text} {example.answer}\n\n" for example in examples[:shots])
    return f"以下是关于{SUBJECTS[subject].chinese}的单项选择题，请直接给出正确答案的选项。\n\n{few_shot}"


def ask_letters(item: MultipleChoiceItem, prompter: Prompter) -> Sequence[Request]:
    """One request for each option letter."""
    prefix, letters = prompter.choices(item.context + item.text, [f" {letter}" for letter in LETTERS])
    return [Score(prefix, ids) for ids in letters]


def score_letters(item: MultipleChoiceItem, answers: Sequence[Answer]) -> Sample:
    """Choose the most probable letter; of equals the first."""
    log_probs = [answer.log_prob for answer in answers if isinstance(answer, Scored)]
    chosen = LETTERS[log_probs.index(max(log_probs))]
    shown = {"chosen": chosen, "log_probs": dict(zip(LETTERS, log_probs, strict=True))}
    return _sample(item, {"accuracy": float(chosen == item.answer)}, shown)


def ask_generated(item: MultipleChoiceItem, prompter: Prompter) -> Sequence[Request]:
    """Generate an answer to the same text, as a user turn."""
    prompt = prompter.chat_prompt([{"role": "user", "content": item.context + item.text}])
    return [Generate(prompt, prompter.max_new_tokens, prompter.stop_ids)]


def score_generated(item: MultipleChoiceItem, answers: Sequence[Answer]) -> Sample:
    """Choose the letter that the answer names; an answer without a letter is wrong and counted in `no_letter`."""
    (answer,) = answers
    assert isinstance(answer, Generated)
    chosen = read_letter(answer.text, len(LETTERS))
    values = {"accuracy": float(chosen == item.answer), "no_letter": float(chosen is None)}
    return _sample(item, values, {"chosen": chosen, "output": answer.text, "finished": answer.finished})


def _sample(item: MultipleChoiceItem, values: Mapping[str, float], shown: Mapping[str, object]) -> Sample:
    subject = SUBJECTS[item.subject]
    groups = {"subject": item.subject, "category": subject.category}
    if subject.is_china_specific:
        groups["across categories"] = CHINA_SPECIFIC
    return Sample(item.id, values, {"question": item.text, "answer": item.answer, **shown}, groups)


def tables(samples: Sequence[Sample]) -> Sequence[Table]:
    """Accuracy averaged over subjects, as by the authors of CMMLU (`accuracy` averages over rows)."""
    subjects: dict[str, list[float]] = {}
    for sample in samples:
        subjects.setdefault(sample.groups["subject"], []).append(sample.values["accuracy"])
    means = {subject: fmean(values) for subject, values in subjects.items()}
    parts: dict[str, list[str]] = {"all": list(means)}
    for subject in means:
        parts.setdefault(SUBJECTS[subject].category, []).append(subject)
        if SUBJECTS[subject].is_china_specific:
            parts.setdefault(CHINA_SPECIFIC, []).append(subject)
    rows = [(part, len(names), fmean(means[name] for name in names)) for part, names in parts.items()]
    head = ("category", "subjects", "accuracy")
    return [Table("Accuracy, averaged over subjects", head, rows, shared=2, shares=(2,))]


def _task(
    name: str,
    about: str,
    ask: Callable[[MultipleChoiceItem, Prompter], Sequence[Request]],
    score: Callable[[MultipleChoiceItem, Sequence[Answer]], Sample],
    metrics: tuple[Metric, ...],
    shots: int,
    version: int = 1,
) -> Task[MultipleChoiceItem]:
    return Task(
        name=name,
        version=version,
        about=about,
        load=load,
        arrange=partial(arrange, shots=shots),
        ask=ask,
        score=score,
        metrics=metrics,
        tables=tables,
        source=SOURCE,
        own_columns=True,
    )


TASK = _task(
    "cmmlu", "CMMLU, 5 shots, log-likelihood of the option letters", ask_letters, score_letters, (ACCURACY,), SHOTS
)
ZERO_SHOT = _task("cmmlu_0shot", "CMMLU without examples", ask_letters, score_letters, (ACCURACY,), shots=0)
GENERATION = _task(
    "cmmlu_generation",
    "CMMLU, 5 shots, the letter in a generated answer",
    ask_generated,
    score_generated,
    (ACCURACY, SampleMetric("no_letter", higher_is_better=False, is_share=True)),
    SHOTS,
    version=2,
)
