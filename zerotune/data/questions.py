"""Rows that are one question and its answer: `qa`, `pr`, and `io` (Alpaca)."""

from __future__ import annotations

from zerotune.data.conversations import Conversation, Message, read_turns
from zerotune.data.fields import Fields, RowError, checked_text
from zerotune.data.tool_calls import parsed


def read_question(fields: Fields, question: str, answer: str) -> Conversation:
    """The fields of these names as a conversation of one question and its answer, if there is one; both may be lists of
    messages.
    """
    if isinstance(fields.get(question), (list, tuple)):
        return read_turns(fields, question, answer)
    return _conversation(fields, fields.text(question), answer)


def read_instruction(fields: Fields) -> Conversation:
    """An instruction, with its input below it, and the output; Alpaca's `history` are the turns before."""
    prompt = fields.text("instruction")
    if fields.has("input"):
        extra = fields.get("input")
        if not isinstance(extra, str) or not extra.isspace():
            prompt = f"{prompt}\n{fields.text('input')}"
    conversation = _conversation(fields, prompt, "output")
    if fields.has("history"):
        start = conversation.messages[0]["role"] == "system"
        conversation.messages[start:start] = _history(fields)
    return conversation


def _conversation(fields: Fields, prompt: str, answer: str) -> Conversation:
    answers = fields.answers(answer)
    messages = [{"role": "user", "content": prompt}]
    if answers:
        messages.append({"role": "assistant", "content": answers[0]})
    if fields.has("system"):
        messages.insert(0, {"role": "system", "content": fields.text("system")})
    return Conversation(messages, also_right=answers[1:])


def _history(fields: Fields) -> list[Message]:
    pairs = parsed(fields.get("history"), "field `history`")
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise RowError("field `history` is not a list of pairs of a question and its answer")
    return [
        {"role": role, "content": checked_text(text, f"history[{index}][{place}]")}
        for index, pair in enumerate(pairs)
        for place, (role, text) in enumerate(zip(("user", "assistant"), pair, strict=True))
    ]
