"""Memory of a model that runs on a CPU."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
LARGEST_KEPT = 2**30  # bytes: larger blocks go back to the system
KEPT = 2**31 - 1  # bytes: the most that mallopt takes


def keep_freed_memory() -> None:
    """Let the next tensor have the memory of the last one, as on a GPU.

    glibc hands each freed block of more than 32 MB back to the system, and smaller ones as soon as they lie at the end:
    a pass then waits for every page of every activation to be given and cleared again, which costs more than what is
    computed on them. Other C libraries have no such call, and nothing changes there.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)
