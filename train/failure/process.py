"""Whether another process of this host is alive."""

from __future__ import annotations

from pathlib import Path

GONE = ("Z", "X")  # a zombie has ended; its parent has not collected it yet


def started(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, to distinguish it from a later one with the same pid. None if the
    system does not report it.
    """
    found = _stat(pid)
    return found[1] if found else None


def ended(pid: int, start: int) -> bool:
    """Whether the process `pid` that began at `start` has ended."""
    found = _stat(pid)
    return found is None or found[0] in GONE or found[1] != start


def _stat(pid: int) -> tuple[str, int] | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
