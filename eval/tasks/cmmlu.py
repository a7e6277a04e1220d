"""CMMLU (arXiv:2306.09212): Chinese multiple-choice questions of 67 subjects, by letters' likelihood or generated.

Prompts are those of lm-evaluation-harness's task of that name, so that choices and accuracies compare with its.
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
from zerotune.data.hub import Hub
from zerotune.data.readers import Row
from zerotune.data.rows import BadExampleError, text_in
from zerotune.inference.requests import Answer, Generate, Generated, Request, Score, Scored

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter

LETTERS = "ABCD"
SHOTS = 5
SHOTS_SPLIT = "dev"
SOURCE = Hub(  # its own layout is a loading script; the hub's converted copy is not
    "haonan-li/cmmlu",
    split="dev,test",
    name=",".join(SUBJECTS),
    revision="refs/convert/parquet",
    files="{name}/{split}/*.parquet",
)
ACCURACY = SampleMetric("accuracy", higher_is_better=True, is_share=True)


@dataclass(frozen=True)
class MultipleChoiceItem:
    """One row. text: question and options, up to where the letter belongs. context: what stands before it."""

    id: str
    subject: str
    split: str
    text: str
    answer: str
    context: str = ""


def load(row: Row) -> MultipleChoiceItem:
    """SPLIT/SUBJECT.csv as published, or .../SUBJECT/SPLIT as on the hub: the place says subject and split."""
    place = PurePath(row.file)
    folder = place.parent.name
    subject, split = (folder, place.stem) if folder in SUBJECTS else (place.stem, folder)
    if subject not in SUBJECTS:
        raise BadExampleError(f"{subject} is none of CMMLU's 67 subjects; a file is named after its subject")
    answer = text_in(row.value, "Answer").strip()
    if answer not in LETTERS:
        raise BadExampleError(f"Answer is {answer!r}, none of A, B, C, D")
    options = "".join(f"{name}. {text_in(row.value, name)}\n" for name in LETTERS)
    question = f"{text_in(row.value, 'Question').strip()}\n{options}答案："
    return MultipleChoiceItem(row.place, subject, split, question, answer)


def arrange(items: list[MultipleChoiceItem], shots: int) -> list[MultipleChoiceItem]:
    """The questions that are not of the dev split, each behind the first `shots` of its subject's that are."""
    examples: dict[str, list[MultipleChoiceItem]] = {}
    for item in items:
        if item.split == SHOTS_SPLIT:
            examples.setdefault(item.subject, []).append(item)
    asked = [item for item in items if item.split != SHOTS_SPLIT]
    contexts = {subject: _context(subject, examples.get(subject, []), shots) for subject in {q.subject for q in asked}}
    return [replace(item, context=contexts[item.subject]) for item in asked]


def _context(subject: str, examples: Sequence[MultipleChoiceItem], shots: int) -> str:
    if len(examples) < shots:
        raise UserError(
            f"cmmlu: {len(examples)} of {shots} example rows for {subject}: name the folder that holds "
            f"dev/{subject}.csv beside test/, or take the task cmmlu_0shot"
        )
    shown = "".join(f"{example.text} {example.answer}\n\n" for example in examples[:shots])
    return f"以下是关于{SUBJECTS[subject].chinese}的单项选择题，请直接给出正确答案的选项。\n\n{shown}"


def ask_letters(item: MultipleChoiceItem, prompter: Prompter) -> Sequence[Request]:
    """How probable each letter is."""
    prefix, letters = prompter.choices(item.context + item.text, [f" {letter}" for letter in LETTERS])
    return [Score(prefix, ids) for ids in letters]


def score_letters(item: MultipleChoiceItem, answers: Sequence[Answer]) -> Sample:
    """Right where the right letter is the most probable one; of equals the first counts."""
    log_probs = [answer.log_prob for answer in answers if isinstance(answer, Scored)]
    chosen = LETTERS[log_probs.index(max(log_probs))]
    shown = {"chosen": chosen, "log_probs": dict(zip(LETTERS, log_probs, strict=True))}
    return _sample(item, {"accuracy": float(chosen == item.answer)}, shown)


def ask_generated(item: MultipleChoiceItem, prompter: Prompter) -> Sequence[Request]:
    """The same text as the user's turn."""
    prompt = prompter.chat_prompt([{"role": "user", "content": item.context + item.text}])
    return [Generate(prompt, prompter.max_new_tokens, prompter.stop_ids)]


def score_generated(item: MultipleChoiceItem, answers: Sequence[Answer]) -> Sample:
    """Right where the answer names the right letter; one that names none is wrong, and counted apart."""
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
    """Accuracy where every subject counts the same, as CMMLU's authors average it (`accuracy` weighs by rows)."""
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
    return [Table("Accuracy, each subject counting the same", head, rows, shared=2, shares=(2,))]


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
    )


TASK = _task("cmmlu", "CMMLU, 5 shots, option letter's likelihood", ask_letters, score_letters, (ACCURACY,), SHOTS)
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
