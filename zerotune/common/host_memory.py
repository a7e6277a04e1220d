"""Memory of a model that runs on a CPU."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
# Bytes: larger blocks go back to the system. No more than glibc itself comes to: its aligned allocation (before 2.38)
# finds a freed block too small for the same request again, and with a small block behind it the heap would grow.
LARGEST_KEPT = 2**25
KEPT = 2**31 - 1  # bytes: the most that mallopt takes


def keep_freed_memory() -> None:
    """Let the next tensor have the memory of the last one, as on a GPU.

    glibc hands freed blocks back to the system, and those at the end of the heap as well: a pass then waits for every
    page of every activation to be given and cleared again, which costs more than what is computed on them. Other C
    libraries have no such call, and nothing changes there.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)
