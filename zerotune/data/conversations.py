"""Rows that are conversations: `messages`, or ShareGPT's `conversations`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zerotune.common.suggest import did_you_mean
from zerotune.data.fields import Fields, RowError, checked_text, says_something
from zerotune.data.raw_row import type_name
from zerotune.data.tool_calls import Call, as_text, parsed, read_calls, read_tools

ROLES = {  # what messages call the speaker, and what chat templates call them
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
    "human": "user",  # from here on as in ShareGPT
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
TEXT_PARTS = ("text", "input_text", "output_text")  # types of the parts of a content
ASKING = ("user", "tool")  # whom the assistant answers
MARKS = ("weight", "loss_weight", "train", "training", "loss")  # of turns: OpenAI, LLaMA-Factory, axolotl, ms-swift
PARTIAL_MARKS = ("train_detail", "training_detail")  # axolotl's, of characters
REASONING = ("reasoning_content", "reasoning", "thinking")
THOUGHT = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages, of which what the assistant says is learned.

    messages: role (system, user, assistant, tool) and content (text); of the assistant also `reasoning_content` and
    `tool_calls` (see `tool_calls`), of a tool `name` and `tool_call_id`, where the row has them. `learned: False` marks
    a turn of the assistant that is only read. tools: JSON schemas of functions. left_out: what else the row says.
    also_right: further answers that are as good as the last message.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    left_out: tuple[str, ...] = ()
    also_right: tuple[str, ...] = ()

    @property
    def is_answered(self) -> bool:
        """Whether it ends with a turn of the assistant."""
        return bool(self.messages[-1]["role"] == "assistant")


def said_in(message: Message) -> str:
    """All that a message says, as text: its reasoning, its content and its calls."""
    thought, calls = message.get("reasoning_content", ""), message.get("tool_calls")
    return "\n".join(filter(None, (thought, message["content"], as_text(calls) if calls else "")))


def answered_turns(messages: Sequence[Message]) -> list[int]:
    """Places of the assistant's messages that answer something, without those that are marked as only to be read."""
    places = [place for place, message in enumerate(messages) if place and message["role"] == "assistant"]
    return [place for place in places if messages[place].get("learned", True)]


def with_system(messages: Sequence[Message], text: str | None) -> list[Message]:
    """The messages, behind the system message `text` if they have none of their own."""
    lacks = bool(text) and (not messages or messages[0]["role"] != "system")
    return [{"role": "system", "content": text}, *messages] if lacks else list(messages)


def read_chat(fields: Fields) -> Conversation:
    """A dialogue up to its last answer, or all of it where it asks for one."""
    name = "messages" if fields.has("messages") or not fields.has("conversations") else "conversations"
    left: set[str] = set()
    return answered(fields, messages_in(fields.get(name), name, left), left)


def read_turns(fields: Fields, question: str, answer: str) -> Conversation:
    """TRL's prompt and completion as lists of messages. As there, only the answer is learned."""
    left: set[str] = set()
    messages = messages_in(fields.get(question), question, left)
    for message in messages if fields.has(answer) else ():
        if message["role"] == "assistant":
            message["learned"] = False
    if fields.has(answer) or not fields.asks:
        messages += messages_in(fields.get(answer), answer, left)
    return answered(fields, messages, left)


def answered(fields: Fields, messages: list[Message], left: set[str]) -> Conversation:
    """The conversation up to its last answer, or all of it where it asks for one. left: what is left out."""
    if fields.has("system") and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": fields.text("system")})
    tools = tools_in(fields)
    if fields.asks and False in [message.pop("learned", True) for message in messages]:
        left.add("marks of turns that are not to be learned")
    if fields.asks and messages[-1]["role"] in ASKING:
        return Conversation(messages, tools, tuple(sorted(left)))
    answered = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answered:
        raise RowError(
            "nothing is asked: no turn of the user" if fields.asks else "no answer: no turn of the assistant"
        )
    if not any(messages[index].get("learned", True) for index in answered):
        raise RowError("no answer: every turn of the assistant is marked 0")
    if answered[-1] + 1 < len(messages):
        left.add("turns after the last answer")
    return Conversation(messages[: answered[-1] + 1], tools, tuple(sorted(left)))


def messages_in(value: Any, name: str, left: set[str]) -> list[Message]:
    """A list of messages, or the JSON text of one. left: gets the names of keys that are left out."""
    entries = parsed(value, f"field `{name}`") if isinstance(value, str) and value.lstrip()[:1] == "[" else value
    if not isinstance(entries, (list, tuple)):
        raise RowError(f"field `{name}` is not a list: it is {type_name(entries)}")
    if not entries:
        raise RowError(f"field `{name}` is empty")
    return [message_in(entry, f"{name}[{index}]", left) for index, entry in enumerate(entries)]


def tools_in(fields: Fields) -> list[Any] | None:
    """The row's tools: `tools`, or OpenAI's older `functions`."""
    name = "tools" if fields.has("tools") or not fields.has("functions") else "functions"
    return read_tools(fields.get(name), f"field `{name}`") if fields.has(name) else None


def message_in(entry: Any, name: str, left: set[str]) -> Message:
    """One message, of either notation. name: what errors call it. left: gets the names of keys that are left out."""
    if not isinstance(entry, Mapping):
        raise RowError(f"{name} is not an object: it is {type_name(entry)}")
    sharegpt = "from" in entry and "role" not in entry
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    said = entry.get(role_key)
    if not isinstance(said, str) or said not in ROLES:
        _require_key(entry, role_key, name)
        meant = did_you_mean(str(said).lower(), ROLES)
        raise RowError(f"{name} has an unknown {role_key}: {said!r}, known are {', '.join(ROLES)}{meant}")
    role, value = ROLES[said], entry.get(content_key)
    if len(entry) == 2 and isinstance(value, str) and said != "function_call" and (value or role != "tool"):
        return {"role": role, "content": checked_text(value, f"{name}.{content_key}")}
    if role != "tool" and not ({"tool_calls", "function_call"} & entry.keys()):
        _require_key(entry, content_key, name)
    more = {key: value for key, value in entry.items() if key not in (role_key, content_key) and says_something(value)}
    message: Message = {"role": role, "content": ""}
    thoughts = [_thought(more.pop(key), f"{name}.{key}") for key in REASONING if key in more]
    if said == "function_call":
        value, thought = _before_call(value)
        thoughts.append(thought)
        if isinstance(value, str) and value.lstrip()[:1] not in ("{", "["):  # in words of its own
            message["content"] = checked_text(value, f"{name}.{content_key}")
        else:
            message["tool_calls"] = read_calls(value, f"{name}.{content_key}", left)
    else:
        message["content"], thought = _content(value, role, f"{name}.{content_key}")
        thoughts.append(thought)
    _add_reasoning(message, thoughts, name)
    _add_calls(message, more, name, left)
    if not message["content"] and role != "tool" and "tool_calls" not in message:
        checked_text("" if isinstance(value, list) else value, f"{name}.{content_key}")
    _add_mark(message, more, name, left)
    if role == "tool":
        message |= {key: more.pop(key) for key in ("name", "tool_call_id") if key in more}
    left.update(f"{name.rpartition('[')[0]}[].{key}" for key in more)
    return message


def _require_key(entry: Mapping[str, Any], key: str, name: str) -> None:
    if key not in entry:
        raise RowError(f"{name} has no `{key}`; its keys: {', '.join(map(str, entry))}")


def _content(value: Any, role: str, name: str) -> tuple[str, str]:
    """(text, thoughts) of a content: a text, a list of parts, nothing, or any JSON that a tool answers."""
    if value is None or (isinstance(value, str) and (not value or value.isspace())):
        return "", ""
    if isinstance(value, str):
        return checked_text(value, name), ""
    if isinstance(value, (list, tuple)) and all(isinstance(part, Mapping) and "type" in part for part in value):
        texts = [_part(part, f"{name}[{index}]") for index, part in enumerate(value)]
        said, thoughts = ("\n".join(text for text, is_said in texts if is_said is kind) for kind in (True, False))
        return said, thoughts
    if role == "tool":
        return checked_text(json.dumps(value, ensure_ascii=False, default=str), name), ""
    return checked_text(value, name), ""


def _part(part: Mapping[str, Any], name: str) -> tuple[str, bool]:
    """(text, whether it is said aloud) of one part of a content."""
    kind = part["type"]
    if kind in TEXT_PARTS:
        return checked_text(part.get("text"), f"{name}.text"), True
    if kind in ("thinking", "reasoning"):
        return checked_text(part.get(kind, part.get("text")), f"{name}.{kind}"), False
    raise RowError(f"{name} is of type {kind!r}: only text is read")


def _thought(value: Any, name: str) -> str:
    return "" if isinstance(value, str) and value.isspace() else checked_text(value, name)


def _before_call(value: Any) -> tuple[Any, str]:
    """A ShareGPT call, and the thought that may stand before it in its text."""
    match = THOUGHT.match(value) if isinstance(value, str) else None
    return (value[match.end() :], match[1].strip()) if match and isinstance(value, str) else (value, "")


def _add_reasoning(message: Message, thoughts: list[str], name: str) -> None:
    different = dict.fromkeys(thought for thought in thoughts if thought)
    if not different:
        return
    if message["role"] != "assistant":
        raise RowError(f"{name} has reasoning, but only the assistant reasons")
    if len(different) > 1:
        raise RowError(f"{name} has different thoughts under {', '.join(REASONING)} or in its content")
    message["reasoning_content"] = next(iter(different))


def _add_calls(message: Message, more: dict[str, Any], name: str, left: set[str]) -> None:
    calls: list[Call] = message.get("tool_calls", [])
    for key in ("tool_calls", "function_call"):
        if key in more:
            calls = [*calls, *read_calls(more.pop(key), f"{name}.{key}", left)]
    if calls and message["role"] != "assistant":
        raise RowError(f"{name} calls tools, but only the assistant can")
    if calls:
        message["tool_calls"] = calls


def _add_mark(message: Message, more: dict[str, Any], name: str, left: set[str]) -> None:
    """Whether the turn is learned, by the marks of several trainers."""
    for key in PARTIAL_MARKS:
        if key in more:
            raise RowError(f"{name}.{key}: parts of a turn cannot be marked, only whole turns")
    for key in MARKS:
        if key not in more:
            continue
        mark = more.pop(key)
        if mark not in (0, 1):  # true and false are equal to these
            raise RowError(f"{name}.{key} is {mark!r}: a turn is learned (1, true) or not (0, false), nothing between")
        if message["role"] == "assistant" and not mark:
            message["learned"] = False
        elif message["role"] != "assistant" and mark:
            left.add(f"{name.rpartition('[')[0]}[].{key} of turns that are not the assistant's")
