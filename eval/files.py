"""Users' files: which there are, their rows, their digests, and writing that never leaves half a file."""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import shutil
from pathlib import Path

from eval import saved_datasets
from eval.errors import CannotWriteError, UserError
from eval.readers import READERS, BadRow, Row, read, reader_of

__all__ = [
    "BadRow",
    "Row",
    "cannot_write",
    "expand",
    "nearest",
    "read",
    "require_writable",
    "sha256_file",
    "sync_folder",
    "write_atomically",
]


KNOWN = f"{', '.join(READERS)}; text files compressed too, as in .jsonl.gz"


def expand(*paths: str, split: str | None = None) -> list[Path]:
    """The data files that file names, folders (searched deeply) and globs stand for, each once: in the order of the
    paths, and of the names within each. A folder of `save_to_disk` stands for its Arrow files; split: which one,
    where it holds several.

    Raises:
        UserError: Nothing matches, or a file is of no known kind.
    """
    return list(dict.fromkeys(file for path in paths for file in _expand(path, split)))


def _expand(path: str, split: str | None) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_file():
        if not reader_of(place):
            raise UserError(f"{path}: files of kind `{place.suffix}` cannot be read; known are {KNOWN}")
        return [place]
    if place.is_dir():
        if saved_datasets.splits(place):
            place = saved_datasets.chosen(place, split)
        if saved_datasets.is_saved(place):
            return saved_datasets.files(place)
        candidates = [file for file in place.rglob("*") if not _is_hidden(file.relative_to(place))]
        candidates = _without_saved(candidates)
    else:
        candidates = [Path(name) for name in glob.glob(str(place), recursive=True)]  # noqa: PTH207 (absolute globs)
    files = sorted((f for f in candidates if f.is_file() and reader_of(f)), key=lambda f: f.as_posix())
    if files:
        return files
    if candidates == [place]:
        raise UserError(
            f"{path}: is no regular file (a pipe, or a device); rows are read more than once: write them to a file"
        )
    if candidates or place.is_dir():
        raise UserError(f"{path}: holds no data file; known are {KNOWN}")
    raise UserError(f"{path}: no such file, folder or glob{nearest(place)}")


def _without_saved(candidates: list[Path]) -> list[Path]:
    """The files of a folder, of the data sets saved in it those that hold rows. Other Arrow files are mostly caches."""
    saved = {file.parent for file in candidates if file.name == saved_datasets.STATE}
    saved = {folder for folder in saved if saved_datasets.is_saved(folder)}
    kept = [f for f in candidates if f.parent not in saved and f.suffix != ".arrow" and f.name != saved_datasets.SPLITS]
    return kept + [file for folder in saved for file in saved_datasets.files(folder)]


def nearest(place: Path) -> str:
    """`; did you mean X?` with the most similar name that does exist, or nothing."""
    parent = place.parent
    while not parent.is_dir() and parent != parent.parent:
        place, parent = parent, parent.parent
    names = [entry.name for entry in parent.iterdir()] if os.access(parent, os.R_OK) else []
    matches = difflib.get_close_matches(place.name, names, n=1)
    return f"; did you mean {parent / matches[0]}?" if matches else ""


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


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)
