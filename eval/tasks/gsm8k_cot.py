"""GSM8K (arXiv:2110.14168) by chain of thought: five worked examples, an answer that ends in `#### NUMBER`.

Prompt and the two matches are those of lm-evaluation-harness's task `gsm8k`, with the first five training rows as
examples for every question (its default draws others for each; `sampler: first_n` makes the prompts equal).
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
from zerotune.data.readers import Row
from zerotune.inference.requests import Answer, Generate, Generated, Request

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter

SHOTS = 5
STOP_TEXTS = ("Question:", "</s>", "<|im_end|>")
NOTHING = "[invalid]"
_STRICT = re.compile(r"#### (\-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = tuple(re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"))


@dataclass(frozen=True)
class FewShotItem:
    """A problem behind its examples."""

    problem: gsm8k.Problem
    examples: str

    @property
    def id(self) -> str:
        """file:line."""
        return self.problem.id


def load(row: Row) -> FewShotItem:
    """See gsm8k."""
    return FewShotItem(gsm8k.load(row), "")


def arrange(items: list[FewShotItem]) -> list[FewShotItem]:
    """The rows that are not of a train file, each behind the first five that are."""
    problems = [item.problem for item in items]
    shots = [problem for problem in problems if problem.split == gsm8k.TRAIN_SPLIT][:SHOTS]
    if len(shots) < SHOTS:
        raise UserError(
            f"gsm8k_cot: {len(shots)} of {SHOTS} example rows: name a folder or glob with a file whose name begins "
            "with train beside the test file"
        )
    examples = "".join(f"Question: {shot.question}\nAnswer: {shot.solution}\n\n" for shot in shots)
    return [FewShotItem(problem, examples) for problem in problems if problem.split != gsm8k.TRAIN_SPLIT]


def ask(item: FewShotItem, prompter: Prompter) -> Sequence[Request]:
    """A plain text to be continued, whatever the chat template."""
    text = f"{item.examples}Question: {item.problem.question}\nAnswer:"
    return [Generate(prompter.document(text).ids, prompter.max_new_tokens, prompter.stop_ids, STOP_TEXTS)]


def score(item: FewShotItem, answers: Sequence[Answer]) -> Sample:
    """As the harness scores (strict and flexible), and by the number that the answer states."""
    (answer,) = answers
    assert isinstance(answer, Generated)
    problem = item.problem
    marked = gsm8k.behind_mark(answer.text)
    values = {
        "strict_match": _match(strict_answer(answer.text), problem.solution),
        "flexible_match": _match(flexible_answer(answer.text), problem.solution),
        "accuracy": float(same_number(stated_number(answer.text), number(problem.answer))),
        "no_mark": float(number(marked) is None),
    }
    shown = {"question": problem.question, "reference": problem.answer, "output": answer.text}
    return Sample(problem.id, values, shown | {"finished": answer.finished})


def stated_number(text: str) -> Fraction | None:
    """The number behind the mark; where there is no mark, in the last box; else the last one. None: cannot be read."""
    said = gsm8k.behind_mark(text) or next(reversed(gsm8k.boxed(text)), "")
    return number(said) if said else last_number(text)


def strict_answer(text: str) -> str:
    """The number behind the first `#### `, as the harness reads it."""
    return next((found.strip() for found in _STRICT.findall(text)), NOTHING)


def flexible_answer(text: str) -> str:
    """The last number, as the harness reads it."""
    found: tuple[str, str] = next(reversed(_FLEXIBLE.findall(text)), (NOTHING, ""))
    return next(filter(None, found)).strip()


def _match(said: str, solution: str) -> float:
    for pattern in _IGNORED:
        said, solution = pattern.sub("", said), pattern.sub("", solution)
    return float(said.lower() == solution.lower())


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
