"""Writing a checkpoint so that it is whole or not there at all.

A checkpoint is the folder `step-000120`. It is written as `step-000120.tmp`, made durable, listed with sizes and
digests in a manifest, and only then renamed: a name without suffix therefore always means a finished checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from train.checkpoint import manifest
from train.checkpoint.compatibility import Origin
from train.protocols import Group
from zerotune.common.errors import CannotWriteError
from zerotune.common.files import free_bytes, lack_of_space, sync, sync_tree

STATE = "state.json"
SHARE = "manifest.rank-{:05d}.json"
SPARE = 1.05  # required free space, as a multiple of the expected size of the checkpoint
# Messages of libraries that write through C++ and do not raise OSError.
FULL = re.compile(
    r"No space left|File too large|quota exceeded|Read-only file system|os error \d+|inline_container\.cc"
)

log = logging.getLogger(__name__)


def folder_of(parent: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`, which need not exist."""
    return parent / f"step-{step:06d}"


def steps(parent: Path) -> list[int]:
    """The steps with a finished checkpoint, in rising order; by folder name, since modification times may jump."""
    found = [re.fullmatch(r"step-([0-9]{6,})", name) for name in names_in(parent)]
    return sorted(int(match[1]) for match in found if match and folder_of(parent, int(match[1])).name == match[0])


def names_in(folder: Path) -> list[str]:
    """Names of all entries of a folder, links included; empty if it does not exist."""
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


def gather(ranks: Group, value: float) -> list[float]:
    """The value of each rank, on every rank."""
    return ranks.sum([value if index == ranks.index else 0.0 for index in range(ranks.count)])


def read_state(folder: Path) -> dict[str, Any]:
    """The `state` that was passed to `commit`."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state


def commit(
    parent: Path,
    step: int,
    write: Callable[[Path], None],
    state: Mapping[str, Any],
    origin: Origin,
    ranks: Group,
    expected_bytes: int | None = None,
) -> Path:
    """Write one checkpoint and return its folder once it is durable. A collective.

    write: writes this rank's files into the given folder. state: JSON, read back by `read_state`.
    expected_bytes: size of the whole checkpoint; by default that of the last one.
    If a checkpoint of this step exists already, it is kept and returned. Raises CannotWriteError on every rank if any
    rank cannot write; the unfinished folder is then removed, and earlier checkpoints are untouched.
    """
    final = folder_of(parent, step)
    temporary = final.with_name(final.name + ".tmp")
    if ranks.sum([float(ranks.index == 0 and manifest.verify(final, "size") is None)])[0]:
        return final
    with _stage(ranks, final, temporary):
        if ranks.index == 0:
            _prepare(final, temporary, expected_bytes)
    with _stage(ranks, final, temporary):
        write(temporary)
    with _stage(ranks, final, temporary):
        sync_tree(temporary)  # by every rank: only the node that wrote a file can flush it
    with _stage(ranks, final, temporary):
        _digest_share(temporary, ranks.index, ranks.count)
    with _stage(ranks, final, temporary):
        if ranks.index == 0:
            _write_manifest(temporary, step, state, origin, ranks.count)
            _publish(temporary, final)
    return final


def set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint to `corrupt-...`, with a number if that name is taken."""
    target, number = folder.with_name(f"corrupt-{folder.name}"), 1
    while target.exists():
        number += 1
        target = folder.with_name(f"corrupt-{folder.name}-{number}")
    folder.rename(target)
    log.warning("%s is kept as %s", folder, target.name)


def _prepare(final: Path, temporary: Path, expected_bytes: int | None) -> None:
    parent = final.parent
    parent.mkdir(parents=True, exist_ok=True)
    sync(parent.parent)
    if temporary.exists():
        shutil.rmtree(temporary)
    if final.exists():
        set_aside(final)
    needed = int(SPARE * (_last_size(parent) if expected_bytes is None else expected_bytes))
    if lack := lack_of_space(parent, needed):
        raise CannotWriteError(lack)
    temporary.mkdir()


def _last_size(parent: Path) -> int:
    for step in reversed(steps(parent)):
        with contextlib.suppress(ValueError):
            return sum(entry["bytes"] for entry in manifest.read(folder_of(parent, step))["files"].values())
    return 0


def _digest_share(folder: Path, index: int, count: int) -> None:
    sizes = {
        name: info.st_size for name, info in manifest.files(folder).items() if not name.startswith("manifest.rank-")
    }
    mine = manifest.files_of_rank(sizes, index, count)
    listed = {name: {"bytes": sizes[name], "sha256": manifest.sha256(folder / name)} for name in mine}
    _write_json(folder / SHARE.format(index), listed)


def _write_manifest(folder: Path, step: int, state: Mapping[str, Any], origin: Origin, count: int) -> None:
    """Join the digests of all ranks. Files that no rank saw (stale network caches) are hashed here."""
    listed: dict[str, Any] = {}
    for index in range(count):
        share = folder / SHARE.format(index)
        if not share.exists():
            raise OSError(f"the files of rank {index} are not visible from rank 0: is {folder.parent} a shared folder?")
        listed |= json.loads(share.read_text(encoding="utf-8"))
        share.unlink()
    _write_json(folder / STATE, state)
    for name, info in manifest.files(folder).items():
        if listed.get(name, {}).get("bytes") != info.st_size:
            listed[name] = {"bytes": info.st_size, "sha256": manifest.sha256(folder / name)}
    _write_json(folder / manifest.NAME, manifest.build(origin, step, dict(sorted(listed.items()))))
    sync(folder)


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def _publish(temporary: Path, final: Path) -> None:
    temporary.rename(final)
    sync(final.parent)


@contextlib.contextmanager
def _stage(ranks: Group, final: Path, temporary: Path) -> Iterator[None]:
    """One stage of a commit: it succeeds on every rank, or every rank raises and the unfinished folder is removed."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = gather(ranks, 0.0 if failure is None else 2.0 if _cannot_write(failure) else 1.0)
    if not any(failed):
        return
    free = free_bytes(final)
    if ranks.index == 0:
        shutil.rmtree(temporary, ignore_errors=True)
    ranks.barrier()
    first = next(index for index, code in enumerate(failed) if code)
    reason = str(failure) if failure else f"rank {first} failed"
    if 2.0 in failed:
        raise CannotWriteError(
            f"Cannot write the checkpoint {final}: {reason}. {free:,} bytes are free there. Earlier checkpoints are "
            f"untouched; free some space and run the same command again to resume from the newest."
        ) from failure
    raise failure or RuntimeError(f"rank {first} failed while writing the checkpoint {final}; see its message")


def _cannot_write(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError | CannotWriteError) or FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
