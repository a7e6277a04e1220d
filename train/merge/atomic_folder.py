"""Writes a folder completely or not at all: under another name, checked there, then renamed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from zerotune.common.errors import CannotWriteError
from zerotune.common.files import free_bytes, lack_of_space, sync, sync_tree

# Suffixes that only a merge uses: leftovers of a killed merge with these suffixes are removed.
DRAFT, FORMER = ".merging", ".replaced"


@contextlib.contextmanager
def draft_of(out: Path, expected_bytes: int) -> Iterator[Path]:
    """A new folder beside `out`, which replaces it if the block succeeds and is removed if not.

    Leftovers of a killed merge are removed first. Raises CannotWriteError, naming the path and the free bytes.
    """
    draft, former = out.with_name(out.name + DRAFT), out.with_name(out.name + FORMER)
    try:
        if former.exists() and not out.exists():  # killed between the two renames
            former.rename(out)
        for left in (draft, former):
            if left.exists():
                shutil.rmtree(left)
        draft.parent.mkdir(parents=True, exist_ok=True)
        if lack := lack_of_space(draft.parent, expected_bytes):
            raise CannotWriteError(f"{out}: {lack}")
        draft.mkdir()
        yield draft
        sync_tree(draft)
        if out.exists():
            out.rename(former)
        draft.rename(out)
        sync(out.parent)
        shutil.rmtree(former, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) or "os error" in str(error).lower():  # safetensors wraps system errors
            raise CannotWriteError(f"{out}: cannot be written ({error}); {free_bytes(out):,} bytes are free") from error
        raise
