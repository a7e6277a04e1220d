"""The manifest of a checkpoint: its files (size, sha256), and what they depend on.

A manifest has its own digest, which distinguishes a damaged one from that of another run.
To keep out files that someone else added, every file must be listed, be a regular file, and belong to the user who
runs the training.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from train.checkpoint.compatibility import Origin, versions

NAME = "manifest.json"
FORMAT = 1
KEYS = {"format", "step", "distributed", "world_size", "fingerprint", "config", "digests", "versions", "files"}

Check = Literal["sha256", "size"]


def files(folder: Path) -> dict[str, os.stat_result]:
    """All files below `folder` except the manifest: relative name -> lstat, sorted."""
    return {name: info for name, info in _walk(folder) if name != NAME}


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from ((f"{entry.name}/{name}", info) for name, info in _walk(Path(entry.path)))
        else:
            yield entry.name, entry.stat(follow_symlinks=False)


def files_of_rank(sizes: Mapping[str, int], index: int, count: int) -> list[str]:
    """The files that rank `index` of `count` hashes: assigned by falling size, so that the work is even."""
    return sorted(sizes, key=lambda name: (-sizes[name], name))[index::count]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(origin: Origin, step: int, listed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are `listed` ({name: {bytes, sha256}})."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "distributed": origin.distributed,
        "world_size": origin.world_size,
        "fingerprint": origin.fingerprint,
        "config": dict(origin.config),
        "digests": dict(origin.digests),
        "versions": versions(),
        "files": dict(listed),
    }
    return {**content, "sha256": _digest(content)}


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises ValueError with the reason if it is missing or damaged."""
    path = folder / NAME
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError(f"{NAME}: not a regular file")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        saved = content.pop("sha256")
    except OSError as error:
        raise ValueError(f"{NAME}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{NAME}: damaged ({error})") from None
    if saved != _digest(content):
        raise ValueError(f"{NAME}: its own sha256 does not match")
    if content.get("format") != FORMAT or not content.keys() >= KEYS:
        raise ValueError(f"{NAME}: format {content.get('format')}, this program reads {FORMAT}")
    named = re.fullmatch(r"step-([0-9]+)", folder.name)
    if named and int(named[1]) != content["step"]:
        raise ValueError(f"{NAME}: belongs to step {content['step']}")
    return content


def verify(folder: Path, check: Check = "sha256", index: int = 0, count: int = 1) -> str | None:
    """Why this checkpoint must not be loaded, as `FILE: reason`; None if it is valid.

    Type, owner, size and the list of files are always checked. Hashing is split over `count` callers, each with its
    own `index`: the checkpoint is valid if all of them return None.
    """
    if folder.is_symlink():
        return f"{folder.name}: a link"
    try:
        listed = read(folder)["files"]
        found = files(folder)
        owner = _own_user(folder.parent)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder}: cannot be read ({error.strerror})"
    for name in sorted({**listed, **found}):
        reason = _mismatch(listed.get(name), found.get(name), owner)
        if reason:
            return f"{name}: {reason}"
    if check == "size":
        return None
    for name in files_of_rank({name: info.st_size for name, info in found.items()}, index, count):
        try:
            if sha256(folder / name) != listed[name]["sha256"]:
                return f"{name}: sha256 differs from the manifest"
        except OSError as error:
            return f"{name}: cannot be read ({error.strerror})"
    return None


def _mismatch(listed: Mapping[str, Any] | None, found: os.stat_result | None, owner: int) -> str | None:
    if found is None:
        return "missing"
    if listed is None:
        return "not in the manifest"
    if not stat.S_ISREG(found.st_mode):
        return "not a regular file (a link?)"
    if found.st_uid != owner:
        return f"belongs to user {found.st_uid}; if you trust it, make your own copy of the checkpoint"
    if found.st_size != listed["bytes"]:
        return f"{found.st_size} bytes, the manifest says {listed['bytes']}"
    return None


def _own_user(folder: Path) -> int:
    """The owner of files that this process writes here: network file systems may map users (root to nobody)."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_uid
    except OSError:  # a read-only or full disk
        return os.geteuid()
