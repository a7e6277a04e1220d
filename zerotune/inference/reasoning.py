"""What a model thinks before it answers is no part of its answer: it is set aside before any task scores.

Text is reasoning where the prompt ends in an opening mark (as templates of reasoning models have it), where the answer
begins with one, or up to a closing mark that stands on a line of its own. Marks anywhere else are part of the answer,
which may speak of them. Reasoning that does not end, because of the length limit, leaves no answer.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from zerotune.inference.requests import Answer, Generate, Generated, Request

_FINAL = "<|channel|>final<|message|>"
MARKS = (  # opening and closing
    ("<think>", "</think>"),  # Qwen, DeepSeek, GLM, Nemotron, SmolLM3, LFM2, Phi-4, MiniMax, Hunyuan ...
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<longcat_think>", "</longcat_think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>analysis<|message|>", _FINAL),  # gpt-oss
    ("<|channel|>commentary<|message|>", _FINAL),
    ("to=self<|message|>", "to=user<|message|>"),  # Muse Glimmer
)
_TOKENS = re.compile(r"<\|[^<>|]+\|>|<\|\w+>|<\w+\|>|[\[<◁][^\[\]<>◁▷]+[\]>▷]")  # of a mark, if they are tokens
_PROMPT_END = 16  # tokens of a prompt in which an opening mark at its end lies
_NEXT_MESSAGE = re.compile(r"(?:<\|e(?:nd|om)\|>)?(?:<\|start\|>)?assistant$")  # gpt-oss: one for each channel


class Parts(NamedTuple):
    """is_open: the reasoning has not come to its end, and so there is no answer."""

    reasoning: str
    answer: str
    is_open: bool


def split(text: str, closing: str = "") -> Parts:
    """Reasoning and answer. closing: the mark that ends the reasoning in which the prompt left the model, or none."""
    thoughts, rest = [], text
    if not closing and (early := _closed_alone(text)):
        thoughts, rest = [early[0]], early[1]
    while closing := closing or _opened(rest):
        rest = rest.lstrip()
        rest = rest.removeprefix(next((mark for mark, end in MARKS if end == closing and rest.startswith(mark)), ""))
        thought, found, rest = rest.partition(closing)
        thoughts.append(_NEXT_MESSAGE.sub("", thought.strip()))
        if not found:
            return Parts(_joined(thoughts), "", True)
        closing = ""
    begins = rest.lstrip()
    leading = next((end for _, end in MARKS if begins.startswith(end)), "")
    answer = begins.removeprefix(leading).lstrip() if thoughts or leading else rest
    return Parts(_joined(thoughts), answer, False)


def without_reasoning(text: str) -> str:
    """A reference answer as answers are compared with it; the same where it ends within its reasoning."""
    parts = split(text)
    return text if parts.is_open else parts.answer


def closing_mark(tokenizer: Any, prompt_ids: Sequence[int]) -> str:
    """What ends the reasoning that a prompt has begun; nothing where it has begun none."""
    end = str(tokenizer.decode(prompt_ids[-_PROMPT_END:], skip_special_tokens=False)).rstrip()
    return next((closing for opening, closing in MARKS if end.endswith(opening)), "")


def whole_letters(text: str) -> str:
    """A text that was cut at a token, without the bytes at its end that are no whole letter."""
    return text.rstrip("\ufffd")


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer without special tokens, but with those that are marks of reasoning."""
    marks = special_marks(tokenizer)
    if not marks or marks.keys().isdisjoint(ids):
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    text, start = "", 0
    for place in [k for k, token in enumerate(ids) if token in marks]:
        text += tokenizer.decode(ids[start:place], skip_special_tokens=True) + marks[ids[place]]
        start = place + 1
    return text + str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def stopped(text: str, stop_texts: Sequence[str], closing: str) -> str | None:
    """The text up to the first stop text that is not part of the reasoning; None where there is none.

    closing: as in `split`.
    """
    parts = split(text, closing)
    start = len(text) - len(parts.answer)
    cuts = [at for stop in stop_texts if (at := text.find(stop, start)) >= 0]
    return text[: min(cuts)] if cuts and not parts.is_open else None


def set_aside(answer: Answer, request: Request, tokenizer: Any) -> Answer:
    """The answer as tasks see it: `text` without the reasoning, which stands in `reasoning`."""
    if not isinstance(answer, Generated) or not isinstance(request, Generate):
        return answer
    parts = split(answer.text, closing_mark(tokenizer, request.prefix_ids))
    said = parts.answer
    for mark in special_marks(tokenizer).values():
        said = said.replace(mark, "")
    if said == answer.text:
        return answer
    return dataclasses.replace(
        answer, text=said, reasoning=parts.reasoning, written=answer.text, only_reasoning=parts.is_open
    )


def _opened(text: str) -> str:
    """The closing mark to the opening one with which a text begins."""
    begins = text.lstrip()
    return next((closing for opening, closing in MARKS if begins.startswith(opening)), "")


def _closed_alone(text: str) -> tuple[str, str] | None:
    """The text before and after a closing mark without an opening one, on its own line and in no code block."""
    for opening, closing in MARKS:
        if closing in text and closing != _FINAL:
            found = re.search(rf"(?m)^[ \t]*{re.escape(closing)}[ \t]*$", text)
            if found and opening not in (before := text[: found.start()]) and before.count("```") % 2 == 0:
                return before.strip(), text[found.end() :]
    return None


def _joined(thoughts: Sequence[str]) -> str:
    return "\n\n".join(thought.strip() for thought in thoughts if thought.strip())


@functools.lru_cache(maxsize=8)
def special_marks(tokenizer: Any) -> dict[int, str]:
    """The tokens of marks that decoding leaves out as special ones."""
    names = {name for pair in MARKS for mark in pair for name in _TOKENS.findall(mark)}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {number: token.content for number, token in added.items() if token.special and token.content in names}
