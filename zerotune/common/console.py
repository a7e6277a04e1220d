"""What a program says before its first result: a line at once, and one for each phase that takes long."""

from __future__ import annotations

import contextlib
import os
import sys

from zerotune.common.mask_secrets import printable


def say(text: str) -> None:
    """One line on the first process's terminal or log; nothing if the terminal is closed."""
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{printable(text)}\n")
            sys.stderr.flush()


def shortened(names: list[str], most: int = 3) -> str:
    """The first few of many names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(count: int, one: str, several: str = "") -> str:
    """`1 step`, `2,000 steps`."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def duration(seconds: float) -> str:
    """Format a time: 3 h 05 min, 4 min 12 s, 9 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
