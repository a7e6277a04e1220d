"""Digests of files, writing that never leaves half a file, and names that were probably meant."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from zerotune.common import suggest
from zerotune.common.errors import CannotWriteError, UserError


def nearest(place: Path) -> str:
    """`; did you mean X?` with the most similar name that does exist, or nothing."""
    parent = place.parent
    while not parent.is_dir() and parent != parent.parent:
        place, parent = parent, parent.parent
    names = [entry.name for entry in parent.iterdir()] if os.access(parent, os.R_OK) else []
    found = suggest.nearest(place.name, names)
    return f"; did you mean {parent / found}?" if found else ""


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, or no whole one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def sha256_files(paths: Sequence[Path]) -> list[str]:
    """`sha256_file` of each."""
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        return list(pool.map(sha256_file, paths))


def write_atomically(path: Path, text: str, durable: bool = True) -> None:
    """Write a whole file or leave the old one: a reader, or a run that was killed, never sees half of it.

    durable: it outlasts a power cut too, which takes milliseconds to seconds.

    Raises:
        CannotWriteError: No space, no permission.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("w", encoding="utf-8", newline="") as handle:
                handle.write(text)
                handle.flush()
                if durable:
                    os.fsync(handle.fileno())
            draft.replace(path)
            if durable:
                sync(path.parent)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def require_writable(folder: Path) -> None:
    """Raises UserError where a folder is not there and cannot be made, or cannot be written to."""
    existing = _existing(folder)
    if not existing.is_dir():
        raise UserError(f"{folder} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written: no permission in {existing}")


def sync(path: Path) -> None:
    """Make the content of a file, or renames inside a folder, outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot, for folders
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` everything below `folder`, and itself. Only the node that wrote a file can flush it."""
    for inner, _, names in os.walk(folder):
        for name in names:
            sync(Path(inner) / name)
        sync(Path(inner))


def lack_of_space(folder: Path, needed: int) -> str:
    """What is said where fewer than `needed` bytes are free; nothing where there are, or where that is not known."""
    disk = shutil.disk_usage(_existing(folder))
    lacking = disk.total and disk.free < needed  # some network file systems know of no size
    return f"about {needed:,} bytes are needed and {disk.free:,} are free" if lacking else ""


def free_bytes(path: Path) -> int:
    """Where `path` is, or would be."""
    return shutil.disk_usage(_existing(path)).free


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def cannot_write(path: Path, error: OSError) -> CannotWriteError:
    """The error for `path`; where space or quota lack, with what is free."""
    space = f" ({free_bytes(path):,} bytes are free there)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return CannotWriteError(f"{path}: cannot be written: {error.strerror or error}{space}")
