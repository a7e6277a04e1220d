"""GSM8K (arXiv:2110.14168) by chain of thought: five worked examples, an answer that ends with `#### NUMBER`.

Prompt and both matches equal those of the task `gsm8k` of lm-evaluation-harness, with the first five training rows as
examples of every question (its default samples others for each question; `sampler: first_n` makes prompts equal).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from eval.metrics.numeric import last_number, number, same_number
from eval.protocols import Sample, SampleMetric, Task
from eval.tasks import gsm8k
from zerotune.common.errors import UserError
from zerotune.data.hub import Hub
from zerotune.data.raw_row import Row
from zerotune.inference.requests import Answer, Generate, Generated, Request

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter

SHOTS = 5
STOP_TEXTS = ("Question:", "</s>", "<|im_end|>")
INVALID = "[invalid]"
_STRICT = re.compile(r"#### (\-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = tuple(re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"))


@dataclass(frozen=True)
class FewShotItem:
    """A problem and its few-shot examples."""

    problem: gsm8k.Problem
    examples: str

    @property
    def id(self) -> str:
        """file:line of the problem."""
        return self.problem.id


def load(row: Row) -> FewShotItem:
    """See `gsm8k.load`."""
    return FewShotItem(gsm8k.load(row), "")


def arrange(items: list[FewShotItem]) -> list[FewShotItem]:
    """The rows outside train files, each after the first five rows of train files."""
    problems = [item.problem for item in items]
    shots = [problem for problem in problems if problem.split == gsm8k.TRAIN_SPLIT][:SHOTS]
    if len(shots) < SHOTS:
        raise UserError(
            f"gsm8k_cot: {len(shots)} of {SHOTS} example rows: name a folder or glob that also contains a file whose "
            "name begins with train"
        )
    examples = "".join(f"Question: {shot.question}\nAnswer: {shot.solution}\n\n" for shot in shots)
    return [FewShotItem(problem, examples) for problem in problems if problem.split != gsm8k.TRAIN_SPLIT]


def ask(item: FewShotItem, prompter: Prompter) -> Sequence[Request]:
    """Continue a plain text, without a chat template."""
    text = f"{item.examples}Question: {item.problem.question}\nAnswer:"
    return [Generate(prompter.document(text).ids, prompter.max_new_tokens, prompter.stop_ids, STOP_TEXTS)]


def score(item: FewShotItem, answers: Sequence[Answer]) -> Sample:
    """Score as the harness does (strict and flexible), and by the stated number."""
    (answer,) = answers
    assert isinstance(answer, Generated)
    problem = item.problem
    marked = gsm8k.after_mark(answer.text)
    values = {
        "strict_match": _match(strict_answer(answer.text), problem.solution),
        "flexible_match": _match(flexible_answer(answer.text), problem.solution),
        "accuracy": float(same_number(stated_number(answer.text), number(problem.answer))),
        "no_mark": float(number(marked) is None),
    }
    shown = {"question": problem.question, "reference": problem.answer, "output": answer.text}
    return Sample(problem.id, values, shown | {"finished": answer.finished})


def stated_number(text: str) -> Fraction | None:
    """The number after the mark, else in the last LaTeX box, else the last number; None if it cannot be read."""
    stated = gsm8k.after_mark(text) or next(reversed(gsm8k.boxed(text)), "")
    return number(stated) if stated else last_number(text)


def strict_answer(text: str) -> str:
    """The number after the first `#### `, as the harness reads it."""
    return next((found.strip() for found in _STRICT.findall(text)), INVALID)


def flexible_answer(text: str) -> str:
    """The last number, as the harness reads it."""
    found: tuple[str, str] = next(reversed(_FLEXIBLE.findall(text)), (INVALID, ""))
    return next(filter(None, found)).strip()


def _match(answer: str, solution: str) -> float:
    for pattern in _IGNORED:
        answer, solution = pattern.sub("", answer), pattern.sub("", solution)
    return float(answer.lower() == solution.lower())


TASK = Task(
    name="gsm8k_cot",
    version=2,
    about="math problems by chain of thought, 5 shots",
    load=load,
    arrange=arrange,
    ask=ask,
    score=score,
    metrics=(
        SampleMetric("strict_match", higher_is_better=True, is_share=True),
        SampleMetric("flexible_match", higher_is_better=True, is_share=True),
        SampleMetric("accuracy", higher_is_better=True, is_share=True),
        SampleMetric("no_mark", higher_is_better=False, is_share=True),
    ),
    source=Hub("openai/gsm8k", split="train[:5],test", name="main"),
    max_new_tokens=256,
)
