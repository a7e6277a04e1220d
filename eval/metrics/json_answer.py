"""The "answer" of a JSON object that a model was asked for, fenced or not, whole or broken off."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MOST_STARTS = 20  # braces that are tried: each may cost time in the length of the text
_FENCED = re.compile(r"```(?:json|JSON)?\s*\n?(.*?)```", re.DOTALL)
_ANSWER = re.compile(r'"answer"\s*:\s*("(?:[^"\\]|\\.)*"|[^\s"{}\[\],][^"{}\[\],\n]*)')


def json_answer(text: str) -> str | None:
    """What the first JSON object with a text or number under "answer" has there, numbers exactly as written.

    Where no object is whole, what stands behind `"answer":`. None where there is neither.
    """
    for value in _objects(text):
        if isinstance(value, dict) and isinstance(value.get("answer"), str):
            return str(value["answer"])
    found = _ANSWER.search(text)
    if not found:
        return None
    said = _decoded(found[1])
    return said if isinstance(said, str) else found[1].strip()


def _objects(text: str) -> Iterator[Any]:
    """Those in fences first, then those that begin at some brace."""
    for fenced in _FENCED.finditer(text):
        yield _decoded(fenced[1])
    for start in [found.start() for found in re.finditer(r"\{", text)][:MOST_STARTS]:
        yield _decoded(text[start:], whole=False)


def _decoded(text: str, whole: bool = True) -> Any:
    """The JSON value at the beginning of the text; None where there is none. Numbers stay texts: 120.0 is not 120."""
    try:
        value, end = _DECODER.raw_decode(text.strip())
    except (ValueError, RecursionError):
        return None
    return None if whole and text.strip()[end:] else value


_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, strict=False)
