"""Whether another process of this host is alive."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

GONE = ("Z", "X")  # a zombie has ended; its parent has not collected it yet
EXITING = 0x4  # of the kernel's flags: it has ended, and its locks may be free, but it is no zombie yet


def started(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, to distinguish it from a later one with the same pid. None if the
    system does not report it.
    """
    found = _stat(pid)
    return found.start if found else None


def ended(pid: int, start: int) -> bool:
    """Whether the process `pid` that began at `start` has ended."""
    found = _stat(pid)
    return found is None or found.state in GONE or bool(found.flags & EXITING) or found.start != start


class _Stat(NamedTuple):
    state: str
    flags: int
    start: int


def _stat(pid: int) -> _Stat | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return _Stat(fields[0], int(fields[6]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None
