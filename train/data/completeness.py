"""Checks that a chat template writes every part of a conversation once and in order, and marks the answers.

The position of a part in the text depends on which parts a conversation has, hardly on their content. So each kind of
conversation is rendered once with a unique placeholder for every part (`Shape`), and each row's text is then searched
for its own parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zerotune.data.conversations import Message
from zerotune.data.fields import RowError
from zerotune.data.fit_messages import Span, probed, with_thought, without_thought

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
SHAPES_KEPT = 10_000
MARKED = re.compile(r"zq[a-z]\d+(?:x\d+)?q")
IN_ORDER = ("zqr", "zqc", "zqn")
CALLED = "the name of a called tool"
NO_TOOLS = "tools (the chat template writes none)"
NO_THOUGHTS = "reasoning of earlier turns (the chat template does not write it)"
_shapes: dict[Any, Shape | None] = {}


@dataclass(frozen=True)
class Shape:
    """How a template renders conversations with the same parts.

    problem: an error of the template; empty if it writes everything. unwritten: turns whose reasoning it omits.
    writes_tools: whether it writes the tools.
    """

    problem: str = ""
    unwritten: frozenset[int] = frozenset()
    writes_tools: bool = True


def shape_of(source: str, messages: Sequence[Message], tools: list[Any] | None) -> Shape | None:
    """How the template renders conversations with these parts; None if it refuses placeholders."""
    key = (source, bool(tools), *[_kind(message) for message in messages])
    if key not in _shapes:
        if len(_shapes) >= SHAPES_KEPT:
            _shapes.clear()
        _shapes[key] = _shape(source, messages, tools)
    return _shapes[key]


def _kind(message: Message) -> tuple[Any, ...]:
    role, content = message["role"], message["content"]
    if len(message) == 2:
        return role, bool(content), role == "assistant" and "</think>" in content
    calls = tuple(bool(call["function"]["arguments"]) for call in message.get("tool_calls", ()))
    return role, bool(content), "</think>" in content, bool(message.get("reasoning_content")), calls, "name" in message


def _shape(source: str, messages: Sequence[Message], tools: list[Any] | None) -> Shape | None:
    marked = [_marked(index, message) for index, message in enumerate(messages)]
    is_answered = messages[-1]["role"] == "assistant"
    says_what_is_learned = is_answered and bool(GENERATION_MARK.search(source))
    stand_in = [_marked_tool(tool) for tool in tools[:1]] if tools else None
    try:
        text, spans = probed(source, marked, stand_in, prompt=not is_answered, marks=says_what_is_learned)
    except RowError:
        return None
    found: dict[str, list[int]] = {}
    for match in MARKED.finditer(text):
        found.setdefault(match[0], []).append(match.start())
    problems, unwritten, reached = [], set(), 0
    for index, message in enumerate(marked):
        for mark, what in _marks(index, message):
            places = found.get(mark, [])
            if not places and mark.startswith("zqr"):
                unwritten.add(index)
                continue
            place = places[0] if places else -1
            problems.append(
                _problem(message["role"], places, reached, spans if says_what_is_learned else None, what, index)
            )
            reached = reached if message["role"] == "system" or not mark.startswith(IN_ORDER) else max(reached, place)
    problem = next(filter(None, problems), "")
    return Shape(problem, frozenset(unwritten), not tools or "zqt0q" in found)


def _problem(
    role: str, places: Sequence[int], reached: int, spans: Sequence[Span] | None, what: str, index: int
) -> str:
    """The problem of a part that is written at `places`, while earlier parts end at `reached`; empty if none."""
    if not places:
        return f"leaves out {what} in message {index}"
    if len(places) > 1 and what != CALLED:  # a result may begin with the name of its tool
        return f"writes {what} in message {index} more than once"
    if role != "system" and places[0] < reached:
        return f"writes {what} in message {index} before an earlier part"
    if role == "assistant" and spans is not None and not any(start <= places[0] < end for start, end in spans):
        return f"does not mark {what} in message {index} as learned"
    return ""


def _marked(index: int, message: Message) -> Message:
    """A message with a placeholder for each of its parts."""
    role, content = message["role"], message["content"]
    marked = {key: value for key, value in message.items() if key not in ("reasoning_content", "tool_calls")}
    is_parts = not isinstance(content, str)
    text = content[0]["text"] if is_parts else content
    word = f"zqc{index}q" if text else ""
    if role == "assistant" and "</think>" in text:
        word = with_thought(f"zqr{index}q", word)
    marked["content"] = [{"type": "text", "text": word}] if is_parts else word
    if message.get("reasoning_content"):
        marked["reasoning_content"] = f"zqr{index}q"
    if "tool_calls" in message:
        marked["tool_calls"] = [_marked_call(index, k, call) for k, call in enumerate(message["tool_calls"])]
    return marked


def _marked_call(index: int, number: int, call: Mapping[str, Any]) -> dict[str, Any]:
    given = call["function"]["arguments"]
    arguments: Any = {f"zqk{index}x{number}q": f"zqv{index}x{number}q"} if given and given != "{}" else {}
    if isinstance(given, str):
        arguments = json.dumps(arguments)
    name = f"zqn{index}x{number}q"
    marked = {**call, "function": {"name": name, "arguments": arguments}}
    if "id" in call:  # Kimi's template writes the name from the id
        marked["id"] = call["id"].replace(call["function"]["name"], name)
    return marked


def _marked_tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    properties = {"zqp0q": {"type": "string", "description": "zqd0q"}}
    parameters = {"type": "object", "properties": properties, "required": ["zqp0q"]}
    function = {"name": "zqt0q", "description": "zqd1q", "parameters": parameters}
    return {"type": "function", "function": function} if "function" in tool else {**tool, **function}


def _marks(index: int, message: Message) -> Iterator[tuple[str, str]]:
    """The placeholders of a marked message, with the part that each replaces."""
    content = message["content"] if isinstance(message["content"], str) else message["content"][0]["text"]
    if "reasoning_content" in message or "</think>" in content:
        yield f"zqr{index}q", "the reasoning"
    if f"zqc{index}q" in content:
        beside = " beside its calls" if "tool_calls" in message else ""
        yield f"zqc{index}q", f"what the {message['role']} says{beside}"
    for number, call in enumerate(message.get("tool_calls", ())):
        yield f"zqn{index}x{number}q", CALLED
        if call["function"]["arguments"] not in ({}, "{}"):
            yield f"zqk{index}x{number}q", "the arguments of a call"
            yield f"zqv{index}x{number}q", "the arguments of a call"


def checked(
    source: str,
    text: str,
    spans: Sequence[Span],
    messages: Sequence[Message],
    tools: list[Any] | None,
    left: set[str] | None = None,
) -> str:
    """The text, if it contains all parts of the messages in order, plain or escaped as in JSON.

    source: the template's Jinja text. spans: of the assistant's turns, if known. left: collects the parts that the
    template may omit and does: tools, and the reasoning of earlier turns.

    Raises:
        RowError: Another part is missing.
    """
    left = set() if left is None else left
    shape = shape_of(source, messages, tools) or Shape()
    if shape.problem:
        raise RowError(f"the chat template {shape.problem}")
    reached = 0
    for index, (message, (start, end)) in enumerate(zip(messages, _places(text, spans, messages), strict=True)):
        if index in shape.unwritten:
            if index == len(messages) - 1:
                raise RowError(f"the chat template leaves out the reasoning in message {index}")
            left.add(NO_THOUGHTS)
        if message["role"] == "system":  # some templates write it with the last user message
            _find(text, _text_of(message), 0, len(text), f"what the system says in message {index}")
        else:
            reached = _found(text, message, index, (max(start, reached), end), index in shape.unwritten)
    if tools and shape.writes_tools:
        for tool in tools:
            _find(text, str(tool.get("function", tool).get("name", "")), 0, len(text), "the name of a tool")
    elif tools:
        left.add(NO_TOOLS)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("a nested field holds half a surrogate pair") from None
    return text


def _places(text: str, spans: Sequence[Span], messages: Sequence[Message]) -> list[Span]:
    """The part of the text that must contain each message: its own span, or the text between the spans around it."""
    turns = sum(message["role"] == "assistant" for message in messages)
    if len(spans) != turns:  # several for one turn, or none are known
        return [(0, len(text))] * len(messages)
    bounds, places, turn = [(0, 0), *spans, (len(text), len(text))], [], 0
    for message in messages:
        turn += message["role"] == "assistant"
        is_span = message["role"] == "assistant"
        places.append(bounds[turn] if is_span else (bounds[turn][1], bounds[turn + 1][0]))
    return places


def _text_of(message: Message) -> str:
    content = message["content"]
    return str(content if isinstance(content, str) else content[0]["text"])


def _found(text: str, message: Message, index: int, place: Span, is_unwritten: bool) -> int:
    """The end of the message's last part in the text. Raises RowError if a part is not in its place."""
    start, end = place
    content, thought = _text_of(message), message.get("reasoning_content", "")
    if message["role"] == "assistant" and "</think>" in content and not thought:
        thought, content = without_thought(content)
    if thought and not is_unwritten:
        _find(text, thought, start, end, f"the reasoning in message {index}")
    if content:
        start = _find(text, content, start, end, f"what the {message['role']} says in message {index}")
    for call in message.get("tool_calls", ()):
        function = call["function"]
        start = _find(text, function["name"], start, end, f"{CALLED} in message {index}")
        for leaf in _leaves(function["arguments"]):
            _find(text, leaf, start, end, f"the arguments of a call in message {index}")
    return start


def _find(text: str, value: Any, start: int, end: int, what: str) -> int:
    """The end of `value` in the text between `start` and `end`. Raises RowError if it is missing."""
    if isinstance(value, str):
        value = value.strip()
        place = text.find(value, start, end)
        if place >= 0:
            return place + len(value)
    for form in _forms(value):
        place = text.find(form, start, end)
        if place >= 0:
            return place + len(form)
    raise RowError(f"the chat template leaves out {what}")


def _forms(value: Any) -> Iterator[str]:
    """Other ways to write a value: as in JSON, or in Python."""
    if isinstance(value, str):
        yield json.dumps(value, ensure_ascii=False)[1:-1]
        yield json.dumps(value)[1:-1]
        yield value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    else:
        yield json.dumps(value)
        yield str(value)


def _leaves(value: Any) -> Iterator[Any]:
    """All keys and values of arguments, at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value
