"""Writes a folder completely or not at all: under another name, checked there, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from train.merge.writer import make_durable
from zerotune.common.errors import CannotWriteError

# Suffixes that only a merge uses: leftovers of a killed merge with these suffixes are removed.
DRAFT, FORMER = ".merging", ".replaced"


@contextlib.contextmanager
def draft_of(out: Path, expected_bytes: int) -> Iterator[Path]:
    """A new folder beside `out`, which replaces it if the block succeeds and is removed if not.

    Leftovers of a killed merge are removed first. Raises CannotWriteError, naming the path and the free bytes.
    """
    draft, former = out.with_name(out.name + DRAFT), out.with_name(out.name + FORMER)
    try:
        _recover(out, draft, former)
        draft.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(draft.parent).free
        if free < expected_bytes:
            raise CannotWriteError(f"{out}: about {expected_bytes:,} bytes are needed and {free:,} are free")
        draft.mkdir()
        yield draft
        make_durable(draft)
        _replace(draft, out, former)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) or "os error" in str(error).lower():  # safetensors wraps system errors
            free = shutil.disk_usage(_existing(out)).free
            raise CannotWriteError(f"{out}: cannot be written ({error}); {free:,} bytes are free") from error
        raise


def _recover(out: Path, draft: Path, former: Path) -> None:
    if former.exists() and not out.exists():  # killed between the two renames
        former.rename(out)
    for left in (draft, former):
        if left.exists():
            shutil.rmtree(left)


def _replace(draft: Path, out: Path, former: Path) -> None:
    if out.exists():
        out.rename(former)
    draft.rename(out)
    descriptor = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(former, ignore_errors=True)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
