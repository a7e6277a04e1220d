"""Rows that are conversations: a question with its answer, an instruction, or whole dialogues."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval.readers import type_name
from train.data.fields import Fields, RowError, checked_text

ROLES = ("system", "user", "assistant", "tool")
ASKING = ("user", "tool")  # whom the assistant answers
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


@dataclass(frozen=True)
class Conversation:
    """Messages as chat templates take them; what the assistant says is learned. tools: JSON schemas of functions."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None

    @property
    def is_answered(self) -> bool:
        """Whether it ends with a turn of the assistant."""
        return bool(self.messages[-1]["role"] == "assistant")


def turn(fields: Fields, prompt: str, answer: str | None) -> Conversation:
    """One question and its answer, if there is one."""
    messages = [{"role": "user", "content": prompt}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    if fields.has("system"):
        messages.insert(0, {"role": "system", "content": fields.text("system")})
    return Conversation(messages)


def read_instruction(fields: Fields) -> Conversation:
    """An instruction, with its input below it, and the output."""
    prompt = fields.text("instruction")
    if fields.has("input"):
        extra = fields.get("input")
        if not isinstance(extra, str) or not extra.isspace():
            prompt = f"{prompt}\n{fields.text('input')}"
    return turn(fields, prompt, fields.answer("output"))


def read_chat(fields: Fields) -> Conversation:
    """A dialogue up to its last answer, or all of it where it asks for one."""
    name = "messages" if fields.has("messages") or not fields.has("conversations") else "conversations"
    entries = fields.get(name)
    if not isinstance(entries, (list, tuple)):
        raise RowError(f"field `{name}` is not a list: it is {type_name(entries)}")
    if not entries:
        raise RowError(f"field `{name}` is empty")
    messages = [message_in(entry, f"{name}[{index}]") for index, entry in enumerate(entries)]
    if fields.has("system") and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": fields.text("system")})
    if fields.asks and messages[-1]["role"] in ASKING:
        return Conversation(messages, _tools(fields))
    answered = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answered:
        raise RowError(
            "nothing is asked: no turn of the user" if fields.asks else "nothing to learn: no turn of the assistant"
        )
    return Conversation(messages[: answered[-1] + 1], _tools(fields))  # what follows the last answer teaches nothing


def message_in(entry: Any, name: str) -> dict[str, Any]:
    """One message, of either notation, as chat templates take it. name: what errors call it."""
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
