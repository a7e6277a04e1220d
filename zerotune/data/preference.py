"""Pairs of answers of which one was preferred, as TRL and LLaMA-Factory write them.

chosen, rejected      texts behind `prompt` (a text), or behind nothing
                      lists of messages behind `prompt` (a list of messages), or whole conversations; a `prompt` of
                      text may repeat their first question (UltraFeedback)
                      one message each behind `conversations`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from zerotune.data.conversations import Conversation, messages_in, tools_in
from zerotune.data.fields import Fields, RowError, checked_text
from zerotune.data.raw_row import type_name

Side = str | Conversation


@dataclass(frozen=True)
class Continuation:
    """A text and how it goes on, as they stand: a reward model reads them without a chat template."""

    prompt: str
    answer: str
    is_answered: ClassVar[bool] = True


@dataclass(frozen=True)
class Preference:
    """Both answers with what stands before them."""

    chosen: Side
    rejected: Side


def read_preference(fields: Fields) -> Preference:
    """Two sides of the same kind."""
    chosen, rejected = (_side(fields, name) for name in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise RowError("chosen and rejected differ in kind: one is text, the other messages")
    return Preference(chosen, rejected)


def different(pair: Preference) -> Preference:
    """The pair, if there is anything to learn from it."""
    if _said(pair.chosen) == _said(pair.rejected):
        raise RowError("nothing to learn: chosen and rejected are the same")
    return pair


def read_asked(fields: Fields) -> Conversation | Continuation:
    """What both sides answer, with the answer that was chosen."""
    chosen = _side(fields, "chosen")
    if isinstance(chosen, Conversation) and len(chosen.messages) > 1:
        return chosen
    if isinstance(chosen, Conversation) or not fields.has("prompt"):
        raise RowError("nothing is asked: there is no prompt before the answers")
    prompt = fields.text("prompt")
    return Continuation(prompt, chosen.removeprefix(prompt))


def _side(fields: Fields, name: str) -> Side:
    value = fields.get(name)
    if isinstance(value, str):
        prompt = fields.text("prompt") if fields.has("prompt") else ""
        return prompt + checked_text(value, f"field `{name}`")
    if not isinstance(value, (Mapping, list, tuple)):
        raise RowError(f"field `{name}` is neither text nor messages: it is {type_name(value)}")
    before = "conversations" if fields.has("conversations") else "prompt"
    left: set[str] = set()
    said = messages_in([value] if isinstance(value, Mapping) else value, name, left)
    prompt = fields.get(before) if fields.has(before) else []
    if isinstance(prompt, str) and before == "prompt":
        first = next((message["content"] for message in said if message["role"] == "user"), None)
        if first != prompt:
            raise RowError(f"prompt is text, and not the first turn of the user in `{name}`: write it as messages too")
        messages = said
    else:
        messages = [*(messages_in(prompt, before, left) if prompt else []), *said]
    if messages[-1]["role"] != "assistant":
        raise RowError(f"field `{name}` does not end with a turn of the assistant")
    if fields.has("system") and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": fields.text("system")})
    if False in [message.pop("learned", True) for message in messages]:
        left.add("marks of turns that are not to be learned")
    return Conversation(messages, tools_in(fields), tuple(sorted(left)))


def _said(side: Side) -> Any:
    return side if isinstance(side, str) else side.messages
