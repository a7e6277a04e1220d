"""Memory of a model that runs on a CPU."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
# Bytes; larger blocks are returned to the system. This is glibc's own maximum: before 2.38 its aligned allocation
# cannot reuse a freed block for an equal request, so larger values would let the heap grow.
LARGEST_KEPT = 2**25
KEPT = 2**31 - 1  # bytes: the most that mallopt takes


def keep_freed_memory() -> None:
    """Let new tensors reuse the memory of freed ones, as on a GPU.

    glibc returns freed blocks, and those at the end of the heap, to the system. Each forward pass would then wait for
    the system to map and clear every page again, which takes longer than the computation. Other C libraries lack the
    call and are left unchanged.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(M_TRIM_THRESHOLD, KEPT)
