"""What a row may look like, and how it becomes a conversation or a text. Add a format by adding a value to FORMATS."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eval.readers import type_name

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


class RowError(Exception):
    """Why a row cannot be used. What stands before the first colon is the kind of the reason.

    missing: the row lacks a field that its format requires.
    """

    def __init__(self, reason: str, missing: bool = False) -> None:
        super().__init__(reason)
        self.missing = missing


@dataclass(frozen=True)
class Conversation:
    """Messages as chat templates take them; what the assistant says is learned. tools: JSON schemas of functions."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


class Fields:
    """The fields of one row under our names, checked as they are asked for; every error is a RowError."""

    def __init__(self, value: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        self.value, self.columns = value, columns

    def has(self, name: str) -> bool:
        """Whether an optional field is there and says something."""
        value = self.value.get(self.columns.get(name, name))
        return value is not None and value != "" and value != []

    def get(self, name: str) -> Any:
        """A required field, never null."""
        column = self.columns.get(name, name)
        if column not in self.value:
            raise RowError(f"field `{column}` is missing", missing=True)
        if self.value[column] is None:
            raise RowError(f"field `{column}` is null")
        return self.value[column]

    def text(self, name: str) -> str:
        """A required field that is text and not only white space."""
        return checked_text(self.get(name), f"field `{self.columns.get(name, name)}`")


def checked_text(value: Any, name: str) -> str:
    """`value` if it is text with something in it that UTF-8 can carry."""
    if not isinstance(value, str):
        raise RowError(f"{name} is not text: it is {type_name(value)}")
    if not value or value.isspace():
        raise RowError(f"{name} is empty")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError(f"{name} holds half a surrogate pair: \\u{ord(value[error.start]):04x}") from None
    return value


@dataclass(frozen=True)
class Format:
    """A kind of row.

    required, optional: its fields. alternatives: fields of which one is enough.
    read: the row's conversation, or its text for a corpus.
    """

    required: tuple[str, ...]
    read: Callable[[Fields], Conversation | str]
    optional: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that this format knows."""
        return self.required + self.alternatives + self.optional


def _turn(fields: Fields, prompt: str, answer: str) -> Conversation:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    if fields.has("system"):
        messages.insert(0, {"role": "system", "content": fields.text("system")})
    return Conversation(messages)


def _read_instruction(fields: Fields) -> Conversation:
    prompt = fields.text("instruction")
    if fields.has("input"):
        extra = fields.get("input")
        if not isinstance(extra, str) or not extra.isspace():
            prompt = f"{prompt}\n{fields.text('input')}"
    return _turn(fields, prompt, fields.text("output"))


def _read_chat(fields: Fields) -> Conversation:
    name = "messages" if fields.has("messages") or not fields.has("conversations") else "conversations"
    entries = fields.get(name)
    if not isinstance(entries, (list, tuple)):
        raise RowError(f"field `{name}` is not a list: it is {type_name(entries)}")
    if not entries:
        raise RowError(f"field `{name}` is empty")
    messages = [_message(entry, f"{name}[{index}]") for index, entry in enumerate(entries)]
    if fields.has("system") and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": fields.text("system")})
    answered = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answered:
        raise RowError("nothing to learn: no turn of the assistant")
    return Conversation(messages[: answered[-1] + 1], _tools(fields))  # what follows the last answer teaches nothing


def _message(entry: Any, name: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise RowError(f"{name} is not an object: it is {type_name(entry)}")
    sharegpt = "from" in entry and "role" not in entry
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    known = SHAREGPT_ROLES if sharegpt else {role: role for role in ROLES}
    said = entry.get(role_key)
    if not isinstance(said, str) or said not in known:
        raise RowError(f"{name} has an unknown {role_key}: {said!r}, known are {', '.join(known)}")
    role, content = known[said], entry.get(content_key)
    kept = {key: value for key, value in entry.items() if key not in (role_key, content_key) and value is not None}
    if said == "function_call":
        return {"role": role, "content": checked_text(content, f"{name}.value"), "function_call": True}
    if role == "assistant" and content in (None, "") and kept.get("tool_calls"):
        return {"role": role, "content": "", **kept}
    if role == "tool" and content == "":  # a tool may answer with nothing
        return {"role": role, "content": "", **kept}
    return {"role": role, "content": checked_text(content, f"{name}.{content_key}"), **kept}


def _tools(fields: Fields) -> list[Any] | None:
    if not fields.has("tools"):
        return None
    tools = fields.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise RowError("field `tools` is not valid JSON") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("field `tools` is not a list of objects")
    return tools or None


FORMATS: Mapping[str, Format] = {
    "text": Format(("text",), lambda fields: fields.text("text")),
    "qa": Format(("question", "answer"), lambda f: _turn(f, f.text("question"), f.text("answer")), ("system",)),
    "pr": Format(("prompt", "response"), lambda f: _turn(f, f.text("prompt"), f.text("response")), ("system",)),
    "io": Format(("instruction", "output"), _read_instruction, ("input", "system")),
    "chat": Format((), _read_chat, ("system", "tools"), alternatives=("messages", "conversations")),
}


def tool_calls(content: str) -> list[dict[str, Any]] | None:
    """The calls in the JSON text of a ShareGPT `function_call` ({name, arguments}, or a list of them), or None."""
    try:
        calls = json.loads(content)
    except (ValueError, RecursionError):
        return None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return None
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
        for call in calls
    ]
