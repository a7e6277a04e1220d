"""Messages as the chat template in use can write them; what it can is seen from what it writes, never from its name."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jinja2

from zerotune.data.conversations import THOUGHT, Conversation, Message
from zerotune.data.fields import RowError
from zerotune.data.tool_calls import HERMES_TOOLS, as_text, hermes_calls, hermes_result

Span = tuple[int, int]  # first character, and the one after the last
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}  # of probes

# What the probes say: words that no template writes by itself.
SYSTEM, ASKED, SAID, THOUGHT_OF, RESULT = "zqsystem", "zqasked", "zqsaid", "zqthought", "zqresult"
NAME, KEY, VALUE = "zqname", "zqkey", "zqvalue"
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "zqdescription",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string", "description": "zqwhat"}}},
    },
}


# What the id of a call may look like, by its number in the conversation, the tool's name and the row's own id.
Style = Callable[[int, str, str], str]
ID_STYLES: tuple[Style, ...] = (
    lambda number, name, given: given or f"call_{number}",  # OpenAI
    lambda number, name, given: (
        given if len(given) == 9 and given.isalnum() else hashlib.sha256(f"{number} {given}".encode()).hexdigest()[:9]
    ),  # Mistral
    lambda number, name, given: f"functions.{name}:{number}",  # Kimi
)


@dataclass(frozen=True)
class Abilities:
    """What a template can write.

    arguments: how it takes those of calls; None where it writes no calls. ids: how the ids of calls look. reasoning:
    where it takes this from, the key `reasoning_content` or <think> marks in the content; None where it writes none.
    parts: whether contents must be lists of parts. marks_results: whether it puts <tool_response> around answers of
    tools.
    """

    arguments: Literal["object", "text"] | None
    ids: Style
    reasoning: Literal["key", "content"] | None
    parts: bool
    marks_results: bool


def rendered(
    source: str,
    messages: Sequence[Message],
    tools: list[Any] | None,
    prompt: bool = False,
    marks: bool = False,
    special_tokens: Mapping[str, str] = SPECIAL_TOKENS,
) -> tuple[str, list[Span]]:
    """What a template makes of messages, and with `marks` the stretches that it marks as learned.

    Raises:
        RowError: It refuses them.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, spans = render_jinja_template(
            conversations=[list(messages)],
            tools=tools,
            chat_template=source,
            return_assistant_tokens_mask=marks,
            add_generation_prompt=prompt,
            **special_tokens,
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise RowError(f"the chat template rejects it: {error}") from None
    return texts[0], spans[0] if marks else []


@lru_cache(maxsize=16)
def abilities(source: str) -> Abilities:
    """Of a template, found by asking it to write a few conversations."""
    parts = _find_start(source, False) is None and _find_start(source, True) is not None
    start = _find_start(source, parts) or []
    reasoning = _reasoning(source, start, parts)
    forms: tuple[tuple[Literal["object", "text"], Any], ...] = (
        ("object", {KEY: VALUE}),
        ("text", json.dumps({KEY: VALUE})),
    )
    for ids, (form, given) in itertools.product(ID_STYLES, forms):
        text = _first_right(source, _calls(start, given, parts, ids(0, NAME, "")), _holds_call)
        if text:
            marks_results = "<tool_response>" in text.partition(RESULT)[0].rpartition(VALUE)[2]
            return Abilities(form, ids, reasoning, parts, marks_results)
    return Abilities(None, ID_STYLES[0], reasoning, parts, False)


def _find_start(source: str, parts: bool) -> list[Message] | None:
    """The turns before an answer: a template may insist on a system message, or take none."""
    for messages in (
        [_message("user", ASKED, parts)],
        [_message(r, t, parts) for r, t in (("system", SYSTEM), ("user", ASKED))],
    ):
        if _first_right(
            source,
            [([*messages, _message("assistant", SAID, parts)], None)],
            lambda text: ASKED in text and SAID in text,
        ):
            return messages
    return None


def _message(role: str, content: str, parts: bool, **more: Any) -> Message:
    return {"role": role, "content": [{"type": "text", "text": content}] if parts else content, **more}


def _calls(
    start: list[Message], arguments: Any, parts: bool, id_: str = "call_0"
) -> list[tuple[list[Message], list[Any] | None]]:
    """Conversations with a call, from the whole to the least: templates refuse what they do not expect."""
    call = {"id": id_, "type": "function", "function": {"name": NAME, "arguments": arguments}}
    calling = [*start, {"role": "assistant", "content": "", "tool_calls": [call]}]
    result = _message("tool", RESULT, parts, tool_call_id=id_, name=NAME)
    whole = [*calling, result, _message("assistant", SAID, parts)]
    return [(whole, [TOOL]), (whole, None), ([*calling, result], [TOOL]), (calling, [TOOL]), (calling, None)]


def _holds_call(text: str) -> bool:
    """Whether the call is in the text, with arguments that are JSON once: neither escaped nor as Python writes them."""
    asked = text.rpartition(ASKED)[2] or text
    return NAME in asked and KEY in asked and VALUE in asked and f'\\"{KEY}' not in asked and f"{{'{KEY}" not in asked


def _reasoning(source: str, start: list[Message], parts: bool) -> Literal["key", "content"] | None:
    def is_right(text: str) -> bool:
        return THOUGHT_OF in text and SAID in text

    thinking = _message("assistant", SAID, parts, reasoning_content=THOUGHT_OF)
    calling = {**_calls(start, {KEY: VALUE}, parts)[-1][0][-1], "reasoning_content": THOUGHT_OF}
    if _first_right(source, [([*start, thinking], None)], is_right):
        return "key"
    if _first_right(source, [([*start, calling], [TOOL])], lambda text: THOUGHT_OF in text):
        return "key"  # it knows thoughts, though not of every turn: marks of another family are no way round that
    written = _message("assistant", with_thought(THOUGHT_OF, SAID), parts)
    return "content" if _first_right(source, [([*start, written], None)], is_right) else None


def _first_right(
    source: str, tries: Sequence[tuple[list[Message], list[Any] | None]], is_right: Callable[[str], bool]
) -> str | None:
    for messages, tools in tries:
        try:
            text, _ = rendered(source, messages, tools)
        except RowError:
            continue
        if is_right(text):
            return text
    return None


def with_thought(thought: str, content: str) -> str:
    """A thought before what is said, in the marks that most models know."""
    return f"<think>\n{thought}\n</think>\n\n{content}"


def without_thought(content: str) -> tuple[str, str]:
    """(thought, what is said) of a content; models whose prompt opens the thought write only its end."""
    match = THOUGHT.match(content)
    if match:
        return match[1].strip(), content[match.end() :]
    thought, mark, said = content.partition("</think>")
    return (thought.strip(), said.lstrip()) if mark and "<think>" not in content else ("", content)


def fitted(source: str, messages: Sequence[Message]) -> list[Message]:
    """The messages as the template takes them; nothing is left out here. source: its Jinja text."""
    able = abilities(source)
    first = messages[0]
    is_hermes = first["role"] == "system" and HERMES_TOOLS in first["content"]  # it says itself how calls are written
    made = [_fitted(message, able, is_hermes) for message in messages]
    return _with_ids(made, able.ids) if any("tool_calls" in message for message in made) else made


def _with_ids(messages: Sequence[Message], style: Style) -> list[Message]:
    """Calls and what tools answer with ids as the template takes them. Without ids tools answer in the calls' order."""
    made: list[Message] = []
    waiting: dict[str, str] = {}  # calls without an answer: the id in the row, or a number, and the new one
    number = 0
    for message in messages:
        calls = []
        for call in message.get("tool_calls", ()):
            given = str(call.get("id", ""))
            new = style(number, call["function"]["name"], given)
            waiting[given or f" {number}"] = new
            calls.append({**call, "id": new})
            number += 1
        if calls:
            message = {**message, "tool_calls": calls}
        elif message["role"] == "tool" and waiting:
            given = str(message.get("tool_call_id", ""))
            message = {**message, "tool_call_id": waiting.pop(given if given in waiting else next(iter(waiting)))}
        made.append(message)
    return made


def _fitted(message: Message, able: Abilities, is_hermes: bool) -> Message:
    if message["role"] == "assistant":
        message = _fitted_answer(message, able, is_hermes)
    elif message["role"] == "tool" and able.marks_results:
        message = {**message, "content": hermes_result(message["content"])}
    return {**message, "content": [{"type": "text", "text": message["content"]}]} if able.parts else message


def _fitted_answer(message: Message, able: Abilities, is_hermes: bool) -> Message:
    content, thought, calls = message["content"], message.get("reasoning_content", ""), message.get("tool_calls", [])
    if able.arguments and not calls and not is_hermes and "<tool_call>" in content:
        content, calls = hermes_calls(content) or (content, [])
    if able.reasoning == "key" and not thought and "</think>" in content:
        within, said = without_thought(content)
        if said or calls:
            content, thought = said, within
    if not able.arguments and calls:
        content, calls = "\n".join(filter(None, (content, as_text(calls)))), []
    if able.reasoning == "content" and thought:
        content, thought = with_thought(thought, content), ""
    fit: Message = {"role": "assistant", "content": content}
    if thought:
        fit["reasoning_content"] = thought
    if calls:
        fit["tool_calls"] = [_fitted_call(call, able) for call in calls]
    return fit


def _fitted_call(call: dict[str, Any], able: Abilities) -> dict[str, Any]:
    function = call["function"]
    if able.arguments == "text":
        function = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return {**call, "function": function}


def learned_turns(conversation: Conversation, text: str, spans: list[Span]) -> list[Span]:
    """The spans of the turns that are not marked 0. spans: at least one for each turn of the assistant, in order.

    Raises:
        RowError: There are marks, and it cannot be told which spans belong to which turn.
    """
    turns = [message for message in conversation.messages if message["role"] == "assistant"]
    if all(turn.get("learned", True) for turn in turns):
        return spans
    owners = list(range(len(turns))) if len(turns) == len(spans) else _owners(turns, [text[a:b] for a, b in spans])
    if set(owners) != set(range(len(turns))):
        raise RowError(
            f"the chat template marks {len(spans)} answers where the row has {len(turns)} turns of the assistant, so "
            "it is unknown which belong to turns with weight 0. Use another data.chat_template, or remove the weights"
        )
    return [span for span, owner in zip(spans, owners, strict=True) if turns[owner].get("learned", True)]


def _owners(turns: Sequence[Message], stretches: Sequence[str]) -> list[int]:
    """The turn that each stretch belongs to: the next one that is in it, else that of the stretch before."""
    owners, turn = list[int](), 0
    for stretch in stretches:
        turn = next((k for k in range(turn, len(turns)) if _opening(turns[k]) in stretch), turn)
        owners.append(turn)
    return owners


def _opening(turn: Message) -> str:
    """Something that a turn says; of all that it says it must be the same in every template."""
    if "tool_calls" in turn:
        return str(turn["tool_calls"][0]["function"]["name"])
    return str(without_thought(turn["content"])[1].strip())
