"""GSM8K (arXiv:2110.14168) as a conversation: answers as JSON, retries if none can be read, optionally a calculator.

One conversation gives all scores: the first answer as a string, the first as a number, and the last as a number. The
calculator needs another prompt, and so is another task.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from statistics import fmean
from typing import TYPE_CHECKING

from eval.metrics.calculator import calculate, written
from eval.metrics.json_answer import json_answers
from eval.metrics.numeric import number, same_number
from eval.protocols import Sample, SampleMetric, Table, Task
from zerotune.data.conversations import Message
from zerotune.data.fields import Fields, RowError
from zerotune.data.hub import Hub
from zerotune.data.raw_row import Row
from zerotune.inference.requests import Answer, Generate, Generated, Request

if TYPE_CHECKING:
    from zerotune.inference.prompt import Prompter

MARK = "####"  # precedes the number in the answers of the data
TRAIN_SPLIT = "train"
MAX_TRIES, MAX_CALLS = 3, 8  # calls of the calculator in each try
LEAST_NEW_TOKENS = 64  # after a calculator's result, however long the answer already is
CALL_END = ">>"
OPEN_CALL = re.compile(r"<<([^<>\n]*)$")
STARTS_NUMBER = re.compile(r"\W{0,8}(?:[\d¼½¾]|[dt]?frac|boxed)")
NUMBERED = re.compile(r"\d{1,2}[.)]\s+[^\W\d]")
BOXED = re.compile(r"\\boxed\s{0,3}\{((?:[^{}]|\{[^{}]{0,60}\}){1,100})\}")
ASK = """Solve this math problem. Answer with one JSON object in a fenced code block and nothing after it:

```json
{{"answer": "<the number alone>", "explanation": "<one sentence>", "steps": ["<step>", "<step>"]}}
```
{tool}
Problem: {question}"""
TOOL = f"""
Work the problem out before the JSON object, and leave every calculation to the calculator: write it in double angle
brackets with numbers, + - * / and parentheses only, for example <<12*3{CALL_END}, and the result is filled in:
<<12*3=36{CALL_END}.
"""
ASK_AGAIN = (
    'I cannot read a number from that. Answer again with the JSON object in a fenced code block; "answer" must be a '
    "number without words."
)


@dataclass(frozen=True)
class Problem:
    """One row. solution: as published. answer: the number after its mark. split: from the file name."""

    id: str
    question: str
    solution: str
    answer: str
    split: str


@dataclass
class Try:
    """One assistant turn. text: its whole output, with results of the calculator filled in. answer: the same without
    reasoning. is_open: it ends with such a result and continues.
    """

    text: str = ""
    answer: str = ""
    tokens: int = 0
    calls: int = 0
    failed_calls: int = 0
    is_open: bool = field(default=False)

    @property
    def number_text(self) -> str | None:
        """The stated answer: in JSON, else after the mark, else in a LaTeX box.

        None if it contains no readable number, or several different ones.
        """
        texts = json_answers(self.answer) or list(filter(None, [after_mark(self.answer)])) or boxed(self.answer)
        numbers = {text: value for text in texts if (value := number(text)) is not None}
        return next(iter(numbers)) if len(set(numbers.values())) == 1 else None


def after_mark(text: str) -> str:
    """The rest of the line after the first mark that a number follows, else "".

    "#### 1. First step" and "#### Step 1" are headings.
    """
    rests = (rest.partition("\n")[0].strip() for rest in text.split(MARK)[1:])
    return next((rest for rest in rests if STARTS_NUMBER.match(rest) and not NUMBERED.match(rest)), "")


def boxed(text: str) -> Sequence[str]:
    r"""The contents of all \boxed{...}."""
    return BOXED.findall(text)


def load(row: Row) -> Problem:
    """A row with `question`, and an `answer` that ends with `#### NUMBER`."""
    solution = Fields(row.value).text("answer")
    answer = after_mark(solution)
    if number(answer) is None:
        raise RowError(f"answer does not end with {MARK} and a number")
    split = TRAIN_SPLIT if PurePath(row.file).name.startswith(TRAIN_SPLIT) else "test"
    return Problem(row.place, Fields(row.value).text("question"), solution, answer, split)


def arrange(problems: list[Problem]) -> list[Problem]:
    """Leave out the rows of train files, unless there are no others."""
    return [problem for problem in problems if problem.split != TRAIN_SPLIT] or problems


def ask(problem: Problem, prompter: Prompter, has_tool: bool) -> Sequence[Request]:
    """The first try."""
    return [_request(problem, [Try()], prompter, has_tool)]


def follow(problem: Problem, answers: Sequence[Answer], prompter: Prompter, has_tool: bool) -> Sequence[Request]:
    """Continue after a calculator's result, or start the next try if no answer could be read."""
    tries = conversation(answers, has_tool)
    if not tries[-1].is_open:
        if tries[-1].number_text is not None or len(tries) == MAX_TRIES:
            return ()
        tries.append(Try())
    return [_request(problem, tries, prompter, has_tool)]


def conversation(answers: Sequence[Answer], has_tool: bool) -> list[Try]:
    """Assemble the answers so far into tries."""
    tries: list[Try] = []
    for answer in answers:
        assert isinstance(answer, Generated)
        if not tries or not tries[-1].is_open:
            tries.append(Try())
        turn = tries[-1]
        turn.answer += answer.text
        turn.text, turn.tokens = turn.text + answer.turn, turn.tokens + answer.tokens
        call = OPEN_CALL.search(turn.answer) if has_tool and answer.finished else None
        turn.is_open = call is not None and turn.calls < MAX_CALLS
        if call and turn.is_open:
            expression = call[1].partition("=")[0]  # a model may add the result itself, as the data do
            value = calculate(expression)
            result = "error" if value is None else written(value)
            done = f"<<{expression}={result}{CALL_END}"
            turn.text, turn.answer = turn.text.removesuffix(call[0]) + done, turn.answer[: call.start()] + done
            turn.calls, turn.failed_calls = turn.calls + 1, turn.failed_calls + (value is None)
    return tries


def score(problem: Problem, answers: Sequence[Answer], has_tool: bool) -> Sample:
    """Score the first answer as a string and as a number, the last as a number, and missing answers."""
    tries = conversation(answers, has_tool)
    reference = number(problem.answer)
    first, last = tries[0].number_text, tries[-1].number_text
    values = {
        "exact_match": float(first is not None and first.strip() == problem.answer),
        "first_accuracy": float(first is not None and same_number(number(first), reference)),
        "accuracy": float(last is not None and same_number(number(last), reference)),
        "no_number": float(last is None),
        "tries": float(len(tries)),
        "calls": float(sum(turn.calls for turn in tries)),
        "failed_calls": float(sum(turn.failed_calls for turn in tries)),
    }
    shown = {"question": problem.question, "reference": problem.answer, "answer": last}
    return Sample(problem.id, values, shown | {"outputs": [turn.answer for turn in tries]})


def tables(samples: Sequence[Sample]) -> Sequence[Table]:
    """Mean numbers of tries and calculator calls."""
    titles = {
        "tries": "tries for each row",
        "calls": "calculator calls for each row",
        "failed_calls": "of these without result",
    }
    rows = [(title, fmean(sample.values[key] for sample in samples)) for key, title in titles.items()]
    return [Table("Tries and calculator", ("what", "mean"), rows)]


def _request(problem: Problem, tries: Sequence[Try], prompter: Prompter, has_tool: bool) -> Generate:
    """The request that continues the last try."""
    prompt = ASK.format(question=problem.question, tool=TOOL if has_tool else "")
    messages: list[Message] = [{"role": "user", "content": prompt}]
    for turn in tries[:-1]:
        messages += [{"role": "assistant", "content": turn.answer}, {"role": "user", "content": ASK_AGAIN}]
    turn = tries[-1]
    can_call = has_tool and turn.calls < MAX_CALLS
    return Generate(
        prompter.chat_prefix(messages, turn.text),
        max(prompter.max_new_tokens - turn.tokens, LEAST_NEW_TOKENS) if turn.tokens else prompter.max_new_tokens,
        prompter.stop_ids,
        stop_texts=(CALL_END,) if can_call else (),
    )


def _task(name: str, about: str, has_tool: bool) -> Task[Problem]:
    return Task(
        name=name,
        version=2,
        about=about,
        load=load,
        arrange=arrange,
        ask=partial(ask, has_tool=has_tool),
        follow=partial(follow, has_tool=has_tool),
        score=partial(score, has_tool=has_tool),
        metrics=(
            SampleMetric("exact_match", higher_is_better=True, is_share=True),
            SampleMetric("first_accuracy", higher_is_better=True, is_share=True),
            SampleMetric("accuracy", higher_is_better=True, is_share=True),
            SampleMetric("no_number", higher_is_better=False, is_share=True),
        ),
        tables=tables,
        source=Hub("openai/gsm8k", split="test", name="main"),
        max_new_tokens=512,
    )


TASK = _task("gsm8k", "math problems, answers as JSON, up to 3 tries", has_tool=False)
CALCULATOR = _task("gsm8k_calculator", "the same with a calculator tool", has_tool=True)
