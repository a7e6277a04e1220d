"""Finds what a chat template leaves out of a conversation, or writes twice, out of order or outside the marked answers.

Training refuses rows with such problems; evaluation counts them.

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
from zerotune.data.fit_messages import Span, rendered, with_thought, without_thought

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
SHAPES_KEPT = 10_000
MARKED = re.compile(r"zq[a-z]\d+(?:x\d+)?q")
IN_ORDER = ("zqr", "zqc", "zqn")
CALLED = "the name of a called tool"
REASONING = "the reasoning"
_shapes: dict[Any, Shape | None] = {}


@dataclass(frozen=True)
class TemplateProblem:
    """Something that a chat template does not write as it should.

    does: what the template does instead. message: index of the message, if it is about one.
    part: the name of a part that training may do without; empty if it refuses the row.
    """

    does: str
    message: int | None = None
    part: str = ""

    def __str__(self) -> str:
        place = "" if self.message is None else f" in message {self.message}"
        return f"the chat template {self.does.format(place)}"

    @property
    def kind(self) -> str:
        """The problem without its place, to count rows with the same one."""
        return f"the chat template {self.does.format('')}"


NO_TOOLS = TemplateProblem("writes no tools", part="tools (the chat template writes none)")
NO_EARLIER_REASONING = TemplateProblem(
    "leaves out the reasoning of earlier turns",
    part="reasoning of earlier turns (the chat template does not write it)",
)


def left_out(what: str, message: int) -> TemplateProblem:
    """A part of a message that is not written."""
    return TemplateProblem(f"leaves out {what}{{}}", message)


@dataclass(frozen=True)
class Shape:
    """How a template renders conversations with the same parts.

    unwritten: turns whose reasoning it omits. writes_tools: whether it writes the tools. problems: all other ones.
    """

    problems: tuple[TemplateProblem, ...] = ()
    unwritten: frozenset[int] = frozenset()
    writes_tools: bool = True


def shape_of(source: str, messages: Sequence[Message], tools: list[Any] | None, learns: bool) -> Shape | None:
    """How the template renders conversations with these parts; None if it refuses placeholders.

    learns: whether all answers must lie within its {% generation %} marks, if it has any.
    """
    key = (source, bool(tools), learns, *[_kind(message) for message in messages])
    if key not in _shapes:
        if len(_shapes) >= SHAPES_KEPT:
            _shapes.clear()
        _shapes[key] = _shape(source, messages, tools, learns)
    return _shapes[key]


def _kind(message: Message) -> tuple[Any, ...]:
    role, content = message["role"], message["content"]
    if len(message) == 2:
        return role, bool(content), role == "assistant" and "</think>" in content
    calls = tuple(bool(call["function"]["arguments"]) for call in message.get("tool_calls", ()))
    return role, bool(content), "</think>" in content, bool(message.get("reasoning_content")), calls, "name" in message


def _shape(source: str, messages: Sequence[Message], tools: list[Any] | None, learns: bool) -> Shape | None:
    marked = [_marked(index, message) for index, message in enumerate(messages)]
    is_answered = messages[-1]["role"] == "assistant"
    has_marks = learns and is_answered and bool(GENERATION_MARK.search(source))
    stand_in = [_marked_tool(tool) for tool in tools[:1]] if tools else None
    try:
        text, spans = rendered(source, marked, stand_in, prompt=not is_answered, marks=has_marks)
    except RowError:
        return None
    found: dict[str, list[int]] = {}
    for match in MARKED.finditer(text):
        found.setdefault(match[0], []).append(match.start())
    wrong, unwritten, reached = list[TemplateProblem](), set[int](), 0
    for index, message in enumerate(marked):
        for mark, what in _marks(index, message):
            places = found.get(mark, [])
            if not places and mark.startswith("zqr"):
                unwritten.add(index)
            elif not places:
                wrong.append(left_out(what, index))
            elif does := _fault(message["role"], places, reached, spans if has_marks else None, what):
                wrong.append(TemplateProblem(does, index))
            if places and message["role"] != "system" and mark.startswith(IN_ORDER):
                reached = max(reached, places[0])
    return Shape(tuple(wrong), frozenset(unwritten), not tools or "zqt0q" in found)


def _fault(role: str, places: Sequence[int], reached: int, spans: Sequence[Span] | None, what: str) -> str:
    """What is wrong with a part that is written at `places`, while earlier parts end at `reached`; empty if nothing."""
    if len(places) > 1 and what != CALLED:  # a result may begin with the name of its tool
        return f"writes {what}{{}} more than once"
    if role != "system" and places[0] < reached:
        return f"writes {what}{{}} before an earlier part"
    if role == "assistant" and spans is not None and not any(start <= places[0] < end for start, end in spans):
        return f"does not mark {what}{{}} as learned"
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
        yield f"zqr{index}q", REASONING
    if f"zqc{index}q" in content:
        beside = " beside its calls" if "tool_calls" in message else ""
        yield f"zqc{index}q", f"what the {message['role']} says{beside}"
    for number, call in enumerate(message.get("tool_calls", ())):
        yield f"zqn{index}x{number}q", CALLED
        if call["function"]["arguments"] not in ({}, "{}"):
            yield f"zqk{index}x{number}q", "the arguments of a call"
            yield f"zqv{index}x{number}q", "the arguments of a call"


def problems(
    source: str,
    text: str,
    messages: Sequence[Message],
    tools: list[Any] | None,
    spans: Sequence[Span] = (),
    learns: bool = False,
) -> Iterator[TemplateProblem]:
    """What is wrong with the text that a template renders of these messages; a part may also be escaped as in JSON.

    source: the template's Jinja text. spans: of the assistant's turns, if known. learns: see `shape_of`.
    """
    shape = shape_of(source, messages, tools, learns) or Shape()
    yield from shape.problems
    faulty = {problem.message for problem in shape.problems}
    reached = 0
    for index, (message, (start, end)) in enumerate(zip(messages, _places(text, spans, messages), strict=True)):
        if index in shape.unwritten:
            yield left_out(REASONING, index) if index == len(messages) - 1 else NO_EARLIER_REASONING
        if index in faulty:
            continue
        is_system = message["role"] == "system"  # some templates write it with the last user message
        start, end = (0, len(text)) if is_system else (max(start, reached), end)
        for part, what, is_ordered in _parts(message, index in shape.unwritten):
            place = _end_of(part, text, start, end)
            if place < 0:
                yield left_out(what, index)
            elif is_ordered:
                start = place
        reached = reached if is_system else start
    if tools and not shape.writes_tools:
        yield NO_TOOLS
    elif any(_end_of(str(tool.get("function", tool).get("name", "")), text, 0, len(text)) < 0 for tool in tools or ()):
        yield TemplateProblem("leaves out the name of a tool")


def checked(
    source: str,
    text: str,
    spans: Sequence[Span],
    messages: Sequence[Message],
    tools: list[Any] | None,
    left: set[str] | None = None,
) -> str:
    """The text, if nothing is wrong with it. See `problems`; left: collects the parts that training may do without.

    Raises:
        RowError: Another part is missing, or not in its place.
    """
    for problem in problems(source, text, messages, tools, spans, learns=True):
        if not problem.part:
            raise RowError(str(problem))
        if left is not None:
            left.add(problem.part)
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


def _parts(message: Message, is_unwritten: bool) -> Iterator[tuple[Any, str, bool]]:
    """The parts of a message that must be in the text: value, name, and whether the following ones stand behind it.

    is_unwritten: the template omits its reasoning.
    """
    content, thought = _text_of(message), message.get("reasoning_content", "")
    if message["role"] == "assistant" and "</think>" in content and not thought:
        thought, content = without_thought(content)
    if thought and not is_unwritten:
        yield thought, REASONING, False
    if content:
        yield content, f"what the {message['role']} says", True
    for call in message.get("tool_calls", ()):
        function = call["function"]
        yield function["name"], CALLED, True
        for leaf in _leaves(function["arguments"]):
            yield leaf, "the arguments of a call", False


def _end_of(value: Any, text: str, start: int, end: int) -> int:
    """The end of `value` in the text between `start` and `end`; -1 if it is not there."""
    if isinstance(value, str):
        value = value.strip()
        place = text.find(value, start, end)
        if place >= 0:
            return place + len(value)
    for form in _forms(value):
        place = text.find(form, start, end)
        if place >= 0:
            return place + len(form)
    return -1


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
