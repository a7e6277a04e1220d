"""Rows of a user's file as examples: a text, or a conversation. What a row is, its columns say.

text                         a document
question, answer             one question and its answer; a list of answers where each is right
prompt, response             the same
instruction, [input], output the same; input stands under the instruction, [history] are the turns before
messages                     a list of {role, content}; a content is a text or a list of text parts
conversations                the same in ShareGPT's words: {from, value}

A column `subset` beside them names the part of the data that a row belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from zerotune.common.errors import UserError
from zerotune.data.file_options import DEFAULT, FileOptions, RowFilter
from zerotune.data.files import BadRow, Row, expand, read
from zerotune.data.readers import type_name

SHOWN_BAD_ROWS = 10
PAIRS = (("question", "answer"), ("prompt", "response"), ("instruction", "output"))
ROLES = {  # what messages call who speaks, and what chat templates call them
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SHAREGPT_ROLES = {
    **ROLES,
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
TEXT_PARTS = ("text", "input_text", "output_text")  # types of the parts of a content
CALLS = ("tool_calls", "function_call")
KNOWN = "text; question + answer; prompt + response; instruction (+ input) + output; messages; conversations"

Item = TypeVar("Item")
Message = Mapping[str, str]  # role, content


class BadExampleError(ValueError):
    """A row that does not fit; the text is the reason."""


@dataclass(frozen=True)
class Example:
    """One row. id: file:line. Either `text` or `messages` is set; an answer, if any, is the last message.

    subset: the part of the data it belongs to (factual, reasoning), from a column of that name. also_right: further
    answers as good as the last message.
    """

    id: str
    text: str | None = None
    messages: tuple[Message, ...] = ()
    subset: str = ""
    also_right: tuple[str, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether the last message is the assistant's."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"


def load(rows: Iterable[Row | BadRow], make: Callable[[Row], Item]) -> list[Item]:
    """The items that `make` forms of the rows.

    Raises UserError with the first ten bad rows as file:line: reason; a row is never left out silently.
    """
    items: list[Item] = []
    bad: list[str] = []
    for row in rows:
        try:
            if isinstance(row, BadRow):
                raise BadExampleError(row.reason)
            items.append(make(row))
        except BadExampleError as reason:
            bad.append(f"{row.place}: {reason}")
    if bad:
        more = f"\n(and {len(bad) - SHOWN_BAD_ROWS} more)" if len(bad) > SHOWN_BAD_ROWS else ""
        count = f"{len(bad)} row{'' if len(bad) == 1 else 's'}"
        raise UserError(f"{count} cannot be evaluated:\n" + "\n".join(bad[:SHOWN_BAD_ROWS]) + more)
    return items


def local(*paths: str, options: FileOptions = DEFAULT) -> Iterator[Row | BadRow]:
    """The rows of files, folders and globs that the options mean."""
    chosen = RowFilter(options.filter)
    for file in expand(*paths):
        for row in read(file, 0, options):
            if isinstance(row, BadRow) or chosen.takes(row.value):
                yield row
    chosen.require_rows()


def examples(check: Callable[[Example], Item]) -> Callable[[Row], Item]:
    """A task's `load` for rows that are texts or conversations."""

    def load_example(row: Row) -> Item:
        understood = example(row)
        try:
            return check(understood)
        except BadExampleError as reason:
            raise BadExampleError(f"{reason}; its columns: {', '.join(map(str, row.value))}") from reason

    return load_example


def example(row: Row) -> Example:
    """The row, understood; raises BadExampleError."""
    place, value = row.place, row.value
    messages, also_right = _conversation(value)
    if messages:
        if value.get("system") and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": text_in(value, "system")})
        return Example(place, messages=tuple(messages), subset=_subset(value), also_right=also_right)
    if "text" in value:
        return Example(place, text=text_in(value, "text"), subset=_subset(value))
    raise BadExampleError(f"none of the known columns ({KNOWN}), only: {', '.join(map(str, value)) or 'nothing'}")


def _conversation(value: Mapping[str, Any]) -> tuple[list[Message], tuple[str, ...]]:
    """The row's messages, and what is as right as the last; none where its columns are not those of a conversation."""
    if value.get("tools"):
        raise BadExampleError("tools cannot be evaluated yet")
    for column, keys in (("messages", ("role", "content")), ("conversations", ("from", "value"))):
        if value.get(column):
            return _messages(value[column], *keys), ()
    for asked, answered in PAIRS:
        if asked in value:
            question = text_in(value, asked)
            if asked == "instruction" and str(value.get("input") or "").strip():
                question += "\n" + text_in(value, "input")
            before = _history(value["history"]) if asked == "instruction" and value.get("history") else []
            answers = _answers(value, answered) if answered in value else ()
            said = [{"role": "assistant", "content": answer} for answer in answers[:1]]
            return [*before, {"role": "user", "content": question}, *said], answers[1:]
    return [], ()


def _answers(value: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """The column's text, or its list of texts."""
    found = value[column]
    if not isinstance(found, (list, tuple)):
        return (text_in(value, column),)
    if not found:
        raise BadExampleError(f"{column} is an empty list")
    return tuple(text_in({column: text}, column) for text in found)


def _subset(value: Mapping[str, Any]) -> str:
    return text_in(value, "subset") if value.get("subset") is not None else ""


def text_in(value: Mapping[str, Any], column: str) -> str:
    """The column's text. Raises BadExampleError where it is missing, blank or something else."""
    text = value.get(column)
    if not isinstance(text, str):
        raise BadExampleError(f"{column} is {type_name(text) if column in value else 'missing'}, not text")
    if not text.strip():
        raise BadExampleError(f"{column} is empty")
    return text


def _messages(value: Any, role_key: str, content_key: str) -> list[Message]:
    if not isinstance(value, (list, tuple)):
        raise BadExampleError("the conversation is not a list of messages")
    messages: list[Message] = []
    for index, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise BadExampleError(f"message {index} is {type_name(message)}, not an object")
        known = SHAREGPT_ROLES if role_key == "from" else ROLES
        said = message.get(role_key)
        if not isinstance(said, str) or said not in known:
            raise BadExampleError(f"message {index}: {role_key} is {said!r}; known: {', '.join(known)}")
        if any(message.get(key) for key in CALLS):
            raise BadExampleError(f"message {index} calls tools, which cannot be evaluated yet")
        messages.append({"role": known[said], "content": _content(message, content_key)})
    return messages


def _content(message: Mapping[str, Any], key: str) -> str:
    """The text of a message, of which parts stand on lines of their own."""
    parts = message.get(key)
    if not isinstance(parts, (list, tuple)):
        return text_in(message, key)
    if not all(isinstance(part, Mapping) and part.get("type") in TEXT_PARTS for part in parts):
        raise BadExampleError(f"{key} has parts that are not text")
    return text_in({key: "\n".join(text_in(part, "text") for part in parts)}, key)


def _history(value: Any) -> list[Message]:
    """Alpaca's turns before: pairs of a question and its answer."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in value):
        raise BadExampleError("history is not a list of pairs of a question and its answer")
    return [
        {"role": role, "content": text_in({"history": text}, "history")}
        for pair in value
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
