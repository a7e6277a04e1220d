"""The table of docs/chat-templates.md, found by rendering: every chat template that trl ships, how rows are written
with it, and whether what is learned stands behind what the model will be asked with.

`python -m tests.support.template_table` writes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from train.data.templates import ChatTemplate, prompt_text, render, resolve
from train.data.training_templates import ENDING, folder
from zerotune.data.completeness import GENERATION_MARK
from zerotune.data.conversations import Conversation
from zerotune.data.fields import RowError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "chat-templates.md"
BEGIN, END = "<!-- made by python -m tests.support.template_table -->\n", "<!-- end -->\n"
SPECIAL = {"bos_token": "<BOS>", "eos_token": "<EOS>", "pad_token": "<PAD>", "unk_token": "<UNK>"}
DAY = date(2026, 1, 31)
CUE = 12  # characters that tell one generation prompt from another
THOUGHTS = re.compile(r"<think>\s*(</think>\s*)?$")
LAST_TOKEN = re.compile(r"(<[^<>\s]*>)\s*$")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "PARIS"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "DESCRIBED",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "a city"}},
            "required": ["city"],
        },
    },
}
CASES: Mapping[str, Conversation] = {
    "one": Conversation([user("Q1"), said("A1")]),
    "system": Conversation([{"role": "system", "content": "S0"}, user("Q1"), said("A1")]),
    "more": Conversation([user("Q1"), said("A1"), user("Q2"), said("A2")]),
    "one, thought": Conversation([user("Q1"), said("A1", reasoning_content="R1")]),
    "more, thought": Conversation(
        [user("Q1"), said("A1", reasoning_content="R1"), user("Q2"), said("A2", reasoning_content="R2")]
    ),
    "one, <think>": Conversation([user("Q1"), said("<think>\nR1\n</think>\n\nA1")]),
    "more, <think>": Conversation(
        [user("Q1"), said("<think>\nR1\n</think>\n\nA1"), user("Q2"), said("<think>\nR2\n</think>\n\nA2")]
    ),
    "tools": Conversation(
        [user("Q1"), said("", tool_calls=[CALL]), {"role": "tool", "name": "weather", "content": "T1"}, said("A1")],
        [TOOL],
    ),
}


@dataclass(frozen=True)
class Turn:
    """before: the text in front of what is learned. asked: the prompt at inference, None where it refuses."""

    before: str
    learned: str
    asked: str | None


def families() -> list[str]:
    """The names of all templates that models have."""
    return sorted(path.stem for path in folder().glob("*.jinja") if not path.stem.endswith(ENDING))


def source(family: str) -> str:
    """The template that the family's tokenizers have."""
    return (folder() / f"{family}.jinja").read_text(encoding="utf-8")


@cache
def template_of(family: str) -> ChatTemplate:
    return resolve("tokenizer", SimpleNamespace(chat_template=source(family), special_tokens_map=SPECIAL), DAY)


@cache
def turns(family: str, case: str) -> tuple[Turn, ...] | str:
    """Of the assistant, in a case; or why it cannot be learned."""
    template, talk = template_of(family), CASES[case]
    try:
        text, spans = render(template, talk)
    except RowError as error:
        return str(error)
    places = [k for k, message in enumerate(talk.messages) if message["role"] == "assistant"]
    assert len(places) == len(spans), (family, case)
    return tuple(
        Turn(text[:start], text[start:end], _asked(template, Conversation(talk.messages[:place], talk.tools)))
        for place, (start, end) in zip(places, spans, strict=True)
    )


def _asked(template: ChatTemplate, talk: Conversation) -> str | None:
    try:
        return prompt_text(template, talk)
    except RowError:
        return None


def difference(turn: Turn) -> str:
    """Why the model is not asked with what stands before the turn, or nothing."""
    if turn.asked is None:
        return "the own template refuses the conversation before it"
    if turn.asked == turn.before:
        return ""
    opened = THOUGHTS.search(turn.asked)
    cue = turn.asked[: opened.start()] if opened else turn.asked
    prompt = "the prompt closes thoughts" if opened and "</think>" in opened[0] else "the prompt opens thoughts"
    kept = "earlier turns keep their thoughts"
    if opened and turn.before == cue:
        return prompt
    if turn.before.endswith(turn.asked[-CUE:]):
        return kept
    if opened and turn.before.endswith(cue[-CUE:]):
        return f"{kept}, {prompt}"
    return "the prompt lacks the opening of the turn"


NAMES = {
    "one": "1",
    "more": "2",
    "one, thought": "1R",
    "more, thought": "2R",
    "one, <think>": "1T",
    "more, <think>": "2T",
    "tools": "tool",
}


def unequal(family: str) -> Iterator[tuple[str, str]]:
    """(case, why) of each case whose last turn is asked for otherwise than it is learned."""
    for case, name in NAMES.items():
        found = turns(family, case)
        why = difference(found[-1]) if not isinstance(found, str) else ""
        if why:
            yield name, why


def _equal(family: str) -> str:
    if isinstance(turns(family, "one"), str):
        return ""
    grouped: dict[str, list[str]] = {}
    for name, why in unequal(family):
        grouped.setdefault(why, []).append(name)
    return "; ".join(f"not {', '.join(names)} ({why})" for why, names in grouped.items()) or "yes"


def _kept(family: str, case: str) -> str:
    """Whether the reasoning of the first answer is learned, in a field of its own or as text."""
    marked, written = (turns(family, f"{case}, {way}") for way in ("thought", "<think>"))
    kept = ["refused" if isinstance(f, str) else "R1" in f[0].learned for f in (marked, written)]
    if kept[0] == kept[1]:
        return "refused" if kept[0] == "refused" else "yes" if kept[0] else "no"
    names = {"refused": "refused", True: "yes", False: "no"}
    return f"field: {names[kept[0]]}, text: {names[kept[1]]}"


def _system(family: str) -> str:
    found = turns(family, "system")
    return "refused" if isinstance(found, str) else "yes" if "S0" in found[0].before else "left out"


def _tools(family: str) -> str:
    found = turns(family, "tools")
    if isinstance(found, str):
        return "refused"
    written = {"described": "DESCRIBED" in found[0].before, "called": "PARIS" in found[0].learned}
    written["answered"] = "T1" in found[-1].before
    return ", ".join(name for name, is_there in written.items() if is_there) or "left out"


def _ends(family: str) -> str:
    found = {case: turns(family, case) for case in ("one", "more", "tools")}
    last = [turn.learned for own in found.values() if not isinstance(own, str) for turn in own]
    tokens = dict.fromkeys(match[1] for text in last if (match := LAST_TOKEN.search(text)))
    return " ".join(f"`{token}`".replace("|", "\\|") for token in tokens) or "nothing"


def _marks(family: str) -> tuple[str, str]:
    template = template_of(family)
    if template.trains_apart:
        return "trl's", "trl"
    return "its own", "its own" if GENERATION_MARK.search(template.text) else "none: by prefix"


def row(family: str) -> Sequence[str]:
    """A line of the table."""
    used, marks = _marks(family)
    if isinstance(turns(family, "one"), str):
        return [f"`{family}`", used, marks, "takes text in parts only: refused", *[""] * 5]
    return [
        f"`{family}`",
        used,
        marks,
        _system(family),
        _tools(family),
        _kept(family, "one"),
        _kept(family, "more"),
        _ends(family),
        _equal(family),
    ]


HEADER = (
    "own template", "written with", "marks", "system", "tools", "reasoning", "earlier reasoning", "learned ends",
    "asked as learned",
)  # fmt: skip


def table() -> str:
    """In Markdown."""
    rows = [HEADER, ["---"] * len(HEADER), *map(row, families())]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def page(text: str) -> str:
    """The page with the table of today."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
