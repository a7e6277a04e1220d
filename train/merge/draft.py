"""A folder that appears whole or not at all: written under another name, checked there, renamed when it is good."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from train.errors import CannotWriteError, UserError
from train.merge.writer import make_durable

MARK = "UNFINISHED"  # in every draft, so that nobody else's folder is taken for one and removed


def refuse_foreign(out: Path) -> None:
    """Raise UserError where `out` is there already and is not an earlier merge."""
    if not out.exists() and not out.is_symlink():
        return
    try:
        known = "merge" in json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = False
    if not known and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            f"{out}: is there already and is not an earlier merge; name another folder, or remove it yourself"
        )


def beside(out: Path, suffix: str) -> Path:
    """The name of `out` with a suffix."""
    return out.with_name(out.name + suffix)


@contextlib.contextmanager
def draft_of(out: Path, expected_bytes: int) -> Iterator[Path]:
    """A new folder beside `out`, which takes its place if the block ends well and is removed if not.

    What a killed merge left is removed first. Raises CannotWriteError, naming the path and the free bytes.
    """
    draft, old = beside(out, ".tmp"), beside(out, ".old")
    try:
        _recover(out, draft, old)
        draft.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(draft.parent).free
        if free < expected_bytes:
            raise CannotWriteError(f"{out}: about {expected_bytes:,} bytes are needed and {free:,} are free")
        draft.mkdir()
        (draft / MARK).touch()
        yield draft
        (draft / MARK).unlink()
        make_durable(draft)
        _replace(draft, out, old)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) or "os error" in str(error).lower():  # safetensors wraps what the system says
            free = shutil.disk_usage(_existing(out)).free
            raise CannotWriteError(f"{out}: cannot be written ({error}); {free:,} bytes are free") from error
        raise


def _recover(out: Path, draft: Path, old: Path) -> None:
    if old.exists() and not out.exists():  # killed between the two renames
        old.rename(out)
    if draft.exists():
        if not (draft / MARK).exists() and any(draft.iterdir()):
            raise UserError(f"{draft}: is in the way and was not left by a merge; move it away")
        shutil.rmtree(draft)


def _replace(draft: Path, out: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    draft.rename(out)
    descriptor = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    shutil.rmtree(old, ignore_errors=True)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())
