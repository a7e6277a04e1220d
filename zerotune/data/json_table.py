"""A JSON file that is one object of objects, key -> row, as ScienceQA publishes its problems."""

from __future__ import annotations

import json
import re
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")


def json_table(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    """(line on which the object begins, key, object) of each entry; nothing where the text is anything else."""
    start = _skip_space(text, 0)
    try:
        whole = json.loads(text) if text.startswith("{", start) else None
    except (ValueError, RecursionError):
        return []
    if not isinstance(whole, dict) or not whole or not all(isinstance(value, dict) for value in whole.values()):
        return []
    entries: list[tuple[int, str, dict[str, Any]]] = []
    decode, line, counted = json.JSONDecoder().raw_decode, 1, 0
    end = start
    while not text.startswith("}", end):  # the text is valid: only the places of its parts are looked for
        key, end = decode(text, _skip_space(text, end + 1))
        start = _skip_space(text, _skip_space(text, end) + 1)
        line, counted = line + text.count("\n", counted, start), start
        value, end = decode(text, start)
        entries.append((line, key, value))
        end = _skip_space(text, end)
    return entries


def _skip_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position
