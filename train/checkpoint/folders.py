"""Finds the newest valid checkpoint, and removes old ones. `commit` writes them, and is re-exported here.

A folder to remove is first renamed to `.trash-...`. A damaged checkpoint is kept as `corrupt-step-...` and never
loaded. All ranks decide together, before anything is loaded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from pathlib import Path

from train.checkpoint import manifest
from train.checkpoint.commit import commit, folder_of, gather, names_in, read_state, set_aside, steps
from train.checkpoint.compatibility import Origin, versions
from train.checkpoint.manifest import Check
from train.errors import NoCheckpointError
from train.protocols import Group
from zerotune.common.errors import UserError

__all__ = ["Origin", "commit", "folder_of", "newest", "prune", "read_state", "steps"]

log = logging.getLogger(__name__)


def newest(parent: Path, ranks: Group, origin: Origin, check: Check = "sha256") -> Path | None:
    """The newest checkpoint that verifies on every rank; None if there are no checkpoints. A collective.

    Checkpoints that do not verify are skipped with a WARNING. Once a valid one is found, they are renamed to
    `corrupt-...`, and leftovers of interrupted saves are removed. Raises NoCheckpointError if none verifies, and
    UserError if the valid one belongs to another run (see Origin); then nothing is renamed or removed.
    """
    found = steps(parent) if ranks.index == 0 else []
    bad: list[int] = []
    for position in range(int(ranks.sum([float(len(found))])[0])):
        # Rank 0 chooses the candidate: on a network file system the listings of other ranks may lag behind.
        step = int(ranks.sum([float(found[-1 - position]) if ranks.index == 0 else 0.0])[0])
        folder = folder_of(parent, step)
        if not _verified(folder, ranks, check):
            bad.append(step)
            continue
        _refuse_other_runs(folder, origin)
        if ranks.index == 0:
            _clean(parent)
            _warn_of_differences(folder, origin)
            for worse in bad:
                with contextlib.suppress(OSError):  # it stays, and the next save of that step renames it
                    set_aside(folder_of(parent, worse))
        ranks.barrier()
        return folder
    if bad:
        raise NoCheckpointError(
            f"None of the {len(bad)} checkpoints in {parent} can be used; the warnings above name the file and "
            f"what is wrong with it. Nothing was deleted. Restore one from a backup, or set run.folder to a new folder "
            f"to start from the beginning."
        )
    if ranks.index == 0:
        _clean(parent)
    return None


def _clean(parent: Path) -> None:
    for name in names_in(parent):
        if re.fullmatch(r"step-[0-9]+\.tmp|\.trash-.*", name):
            log.info("removing %s, left by an interrupted save", parent / name)
            _remove(parent / name)


def _verified(folder: Path, ranks: Group, check: Check) -> bool:
    # Each node hashes every file once, shared among its ranks: nodes may see different file contents.
    index, count = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    reason = manifest.verify(folder, check, index % count, count)
    failed = gather(ranks, float(reason is not None))
    if reason and not any(failed[: ranks.index]):
        log.warning("checkpoint %s is not used: %s", folder, reason)
    return not any(failed)


def _refuse_other_runs(folder: Path, origin: Origin) -> None:
    found = manifest.read(folder)
    lines = origin.differences(found)
    if not lines:
        return
    extend = ", train to the new end with --run.extend true" if origin.can_extend(found) else ""
    raise UserError(
        f"{folder} belongs to another run:\n  "
        + "\n  ".join(lines)
        + f"\nUndo these changes to resume it{extend}, or set run.folder to a new folder to start from the beginning."
    )


def _warn_of_differences(folder: Path, origin: Origin) -> None:
    before, now = manifest.read(folder), versions()
    old = before["versions"]
    changed = [f"{name} {old.get(name)} -> {now[name]}" for name in now if old.get(name) != now[name]]
    if changed:
        log.warning("%s: versions have changed (%s); results may differ in the last bits", folder, ", ".join(changed))
    if (before["distributed"], before["world_size"]) != (origin.distributed, origin.world_size):
        log.warning(
            "%s: written by %s, now %s: the state is restored bitwise and the same rows follow in the same order, but "
            "sums are added in another order, so results differ in their last digits (docs/resume.md)",
            folder,
            _sharding(before["distributed"], before["world_size"]),
            _sharding(origin.distributed, origin.world_size),
        )


def _sharding(distributed: str, count: int) -> str:
    return f"{count} process{'es' if count > 1 else ''} ({distributed})"


def prune(parent: Path, keep_last: int, best_step: int | None, ranks: Group) -> None:
    """Remove old checkpoints after a commit, but not the best or the newest. A failure to remove is a WARNING."""
    if ranks.index:
        return
    present = steps(parent)
    for step in present[: -max(keep_last, 1)]:
        if step != best_step:
            _discard(folder_of(parent, step))


def _discard(folder: Path) -> None:
    """Rename, then remove: an interrupted removal must not leave part of a checkpoint under a valid name."""
    trash = folder.with_name(f".trash-{folder.name}")
    try:
        folder.rename(trash)
    except OSError as error:
        log.warning("cannot remove the old checkpoint %s: %s", folder, error)
        return
    _remove(trash)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        log.warning("cannot remove %s: %s", folder, error)
