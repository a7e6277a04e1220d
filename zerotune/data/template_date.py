"""The day that chat templates read. A template that calls `strftime_now` (Llama 3.2, gpt-oss) would write another text
every day: the day belongs to the run or the evaluation, and stands in the source in place of the call.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time

from zerotune.common.errors import UserError

ANY_CALL = re.compile(r"\bstrftime_now\s*\(")
CALL = re.compile(r"""\bstrftime_now\s*\(\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*\)""")


def reads_clock(template: str) -> bool:
    """Whether what the template writes depends on when it does."""
    return ANY_CALL.search(template) is not None


def dated(template: str, day: date) -> str:
    """The template as it is on that day, at 0:00; the same text where it reads no clock.

    Raises UserError for a call whose format is no plain text: what it gives cannot be known beforehand.
    """
    midnight = datetime.combine(day, time())
    fixed = CALL.sub(lambda call: _literal(midnight.strftime(_value(call[1]))), template)
    if reads_clock(fixed):
        raise UserError(
            "the chat template reads the clock with a format that is not written out, so its texts would differ from"
            ' day to day; write strftime_now("%Y-%m-%d") or the like there'
        )
    return fixed


def _value(literal: str) -> str:
    """Of a Jinja string, which has Python's escapes."""
    return literal[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")


def _literal(text: str) -> str:
    escaped = text.encode("unicode-escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'
