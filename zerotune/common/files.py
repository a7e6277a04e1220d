"""Digests of files, writing that never leaves half a file, and names that were probably meant."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

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


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


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
                sync_folder(path.parent)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def require_writable(folder: Path) -> None:
    """Raises UserError where a folder is not there and cannot be made, or cannot be written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{folder} cannot be made: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written: no permission in {existing}")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, error: OSError) -> CannotWriteError:
    """The error for `path`, with the space that is left there."""
    existing = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
    free = shutil.disk_usage(existing).free
    return CannotWriteError(f"{path}: cannot be written: {error.strerror or error} ({free:,} bytes are free there)")
