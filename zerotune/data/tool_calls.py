"""Calls of tools in the ways that rows write them, as OpenAI and Hugging Face have them; arguments are objects.

{"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}    (an id only where the row has one)
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

from zerotune.data.fields import RowError, says_something
from zerotune.data.raw_row import type_name

Call = dict[str, Any]
HERMES_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
HERMES_RESULT = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)
HERMES_TOOLS = "<tools>"
ARGUMENTS = ("arguments", "parameters")  # Llama's word for them


def parsed(value: Any, name: str) -> Any:
    """`value`, and where it is JSON text what that says. NaN and its kin, and a key twice, are refused."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RowError as error:
        raise RowError(f"{name} {error}") from None
    except (ValueError, RecursionError):
        raise RowError(f"{name} is not valid JSON") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise RowError("has a key twice in one object")
    return made


def _refuse_constant(constant: str) -> Any:
    raise RowError(f"holds {constant}, which JSON does not know")


def read_calls(value: Any, name: str, left: set[str]) -> list[Call]:
    """A list of calls, or one, as objects or as JSON text. left: gets the names of keys that are left out."""
    value = parsed(value, name)
    entries = value if isinstance(value, (list, tuple)) else [value]
    if not entries:
        raise RowError(f"{name} is empty")
    return [_call(entry, f"{name}[{index}]", left) for index, entry in enumerate(entries)]


def _call(entry: Any, name: str, left: set[str]) -> Call:
    if not isinstance(entry, Mapping):
        raise RowError(f"{name} is not an object: it is {type_name(entry)}")
    kind = entry.get("type") or "function"
    if kind != "function":
        raise RowError(f"{name}.type is {kind!r}: only calls of functions are known")
    function = entry.get("function") or entry
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise RowError(f"{name} has no name of a function")
    given = next((key for key in ARGUMENTS if function.get(key) is not None), ARGUMENTS[0])
    arguments = function.get(given)
    arguments = {} if arguments in (None, "") else parsed(arguments, f"{name}.{given}")
    if not isinstance(arguments, Mapping):
        raise RowError(f"{name}.{given} is not an object: it is {type_name(arguments)}")
    known = {"id", "type", "function", "name", given}
    left.update(
        f"{_kind(name)}.{key}"
        for part in (entry, function)
        for key, said in part.items()
        if key not in known and says_something(said)
    )
    call: Call = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return {"id": entry["id"], **call} if says_something(entry.get("id")) else call


def _kind(name: str) -> str:
    """`messages[3].tool_calls[0]` as `messages[].tool_calls[]`."""
    return re.sub(r"\[\d+\]", "[]", name)


def hermes_calls(content: str) -> tuple[str, list[Call]] | None:
    """(what is said before the calls, the calls) of a text that ends with `<tool_call>{...}</tool_call>` blocks of
    JSON; None where it does not.
    """
    blocks = list(HERMES_CALL.finditer(content))
    if not blocks or content[blocks[-1].end() :].strip():
        return None
    if any(content[a.end() : b.start()].strip() for a, b in itertools.pairwise(blocks)):
        return None
    try:
        calls = [call for block in blocks for call in read_calls(block[1], "call", set())]
    except RowError:
        return None  # in words of its own: learned as it stands
    return content[: blocks[0].start()].strip(), calls


def hermes_result(content: str) -> str:
    """What stands in a `<tool_response>`, where that is all."""
    match = HERMES_RESULT.fullmatch(content)
    return match[1] if match and match[1] and "<tool_response>" not in match[1] else content


def as_text(calls: list[Call]) -> str:
    """Calls for a template that knows none: their JSON text, of one call or of a list."""
    said = [call["function"] for call in calls]
    return json.dumps(said[0] if len(said) == 1 else said, ensure_ascii=False)


def read_tools(value: Any, name: str) -> list[dict[str, Any]] | None:
    """JSON schemas of functions, as {type: function, function: {...}}; None for an empty list."""
    entries = parsed(value, name)
    if not isinstance(entries, (list, tuple)):
        raise RowError(f"{name} is not a list of objects")
    tools = [parsed(entry, f"{name}[{index}]") for index, entry in enumerate(entries)]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError(f"{name} is not a list of objects")
    return [_tool(tool) for tool in tools] or None


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    is_bare = isinstance(tool.get("name"), str) and "function" not in tool and tool.get("type") in (None, "function")
    if not is_bare:
        return dict(tool)
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
