"""Separates a model's reasoning from its answer, so that tasks score only the answer.

Text is reasoning if the prompt ends with an opening mark (as templates of reasoning models do), if the output begins
with one, or if a closing mark on a line of its own follows it. Marks anywhere else are part of the answer. An output
that ends within its reasoning, at the length limit, has no answer.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from zerotune.data.number_tokens import is_number
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
_TOKENS = re.compile(r"<\|[^<>|]+\|>|<\|\w+>|<\w+\|>|[\[<◁][^\[\]<>◁▷]+[\]>▷]")  # possible special tokens of a mark
_PROMPT_END = 16  # tokens at the end of a prompt that are searched for an opening mark
_NEXT_MESSAGE = re.compile(r"(?:<\|e(?:nd|om)\|>)?(?:<\|start\|>)?assistant$")  # gpt-oss: one for each channel


class Parts(NamedTuple):
    """is_open: the output ends within the reasoning, so there is no answer."""

    reasoning: str
    answer: str
    is_open: bool


def split(text: str, closing: str = "") -> Parts:
    """Split an output into reasoning and answer. closing: the closing mark if the prompt opened reasoning, else ""."""
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
    """The closing mark of the reasoning that a prompt opens; "" if it opens none."""
    words = [token for token in prompt_ids[-_PROMPT_END:] if not is_number(token)]  # which no mark contains
    end = str(tokenizer.decode(words, skip_special_tokens=False)).rstrip()
    return next((closing for opening, closing in MARKS if end.endswith(opening)), "")


def without_partial_character(text: str) -> str:
    """A text that was cut at a token, without the incomplete character at its end."""
    return text.rstrip("\ufffd")


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode an output without special tokens, except those of reasoning marks."""
    marks = reasoning_tokens(tokenizer)
    if not marks or marks.keys().isdisjoint(ids):
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    text, start = "", 0
    for k in [k for k, token in enumerate(ids) if token in marks]:
        text += tokenizer.decode(ids[start:k], skip_special_tokens=True) + marks[ids[k]]
        start = k + 1
    return text + str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def cut_at_stop(text: str, stop_texts: Sequence[str], closing: str) -> str | None:
    """The text up to the first stop text after the reasoning; None if there is no stop text.

    closing: as in `split`.
    """
    parts = split(text, closing)
    start = len(text) - len(parts.answer)
    cuts = [at for stop in stop_texts if (at := text.find(stop, start)) >= 0]
    return text[: min(cuts)] if cuts and not parts.is_open else None


def strip_reasoning(answer: Answer, request: Request, tokenizer: Any) -> Answer:
    """Move the reasoning of a generated answer from `text` to `reasoning`."""
    if not isinstance(answer, Generated) or not isinstance(request, Generate):
        return answer
    parts = split(answer.text, closing_mark(tokenizer, request.prefix_ids))
    text = parts.answer
    for mark in reasoning_tokens(tokenizer).values():
        text = text.replace(mark, "")
    if text == answer.text:
        return answer
    return dataclasses.replace(
        answer, text=text, reasoning=parts.reasoning, written=answer.text, only_reasoning=parts.is_open
    )


def _opened(text: str) -> str:
    """The closing mark of the opening mark at the start of a text, else ""."""
    begins = text.lstrip()
    return next((closing for opening, closing in MARKS if begins.startswith(opening)), "")


def _closed_alone(text: str) -> tuple[str, str] | None:
    """Text before and after a closing mark without an opening one, on its own line and outside code blocks."""
    for opening, closing in MARKS:
        if closing in text and closing != _FINAL:
            found = re.search(rf"(?m)^[ \t]*{re.escape(closing)}[ \t]*$", text)
            if found and opening not in (before := text[: found.start()]) and before.count("```") % 2 == 0:
                return before.strip(), text[found.end() :]
    return None


def _joined(thoughts: Sequence[str]) -> str:
    return "\n\n".join(thought.strip() for thought in thoughts if thought.strip())


@functools.lru_cache(maxsize=8)
def reasoning_tokens(tokenizer: Any) -> dict[int, str]:
    """Special tokens that belong to reasoning marks, which decoding would omit."""
    names = {name for pair in MARKS for mark in pair for name in _TOKENS.findall(mark)}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {number: token.content for number, token in added.items() if token.special and token.content in names}
