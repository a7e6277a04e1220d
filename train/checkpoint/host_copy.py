"""A copy of tensors in the memory of the host, and whether there is room for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from train.protocols import Group

SPARE = 1.2  # free memory asked for, as a multiple of what a copy takes
MACHINE = Path("/")
# Control groups, version 2 and 1: folder below /sys/fs/cgroup, limit, use, and what of the use can be given back.
GROUPS = {
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}

log = logging.getLogger(__name__)


class HostCopy:
    """Copies nested containers with their tensors. A copy is good until the next one is made.

    The memory is kept for the next copy: on a CPU, new pages cost about ten times as much as the copying itself.
    """

    def __init__(self) -> None:
        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self._held_bytes = 0.0  # by all processes of this machine
        self._warned = False

    def fits(self, sizes: Sequence[float], ranks: Group) -> bool:
        """Whether every machine has room for the copies of its ranks. Called by all ranks together.

        sizes: bytes that each rank would copy. What does not fit is told once, as a WARNING.
        """
        local, locals_ = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        first = ranks.index - local
        here = sum(sizes[first : first + locals_])
        more, free = here - self._held_bytes, available_bytes()
        short = more > 0 and SPARE * more > free
        if short and local == 0 and not self._warned:
            self._warned = True
            log.warning(
                "training waits while checkpoints are written: copying them takes %.1f GB of memory, %.1f GB are free",
                more / 1e9, free / 1e9,
            )  # fmt: skip
        if ranks.sum([float(short)])[0]:
            return False
        self._held_bytes = max(self._held_bytes, here)
        return True

    def __call__(self, contents: dict[str, Any]) -> dict[str, Any]:
        """The same in host memory; what shares memory shares it there too."""
        copy = self._stager.stage(contents)
        assert isinstance(copy, dict)  # a future only where asked for
        return copy


def available_bytes(machine: Path = MACHINE) -> int:
    """Memory that can still be taken here: of the machine, or of the job or container that this process belongs to."""
    return min([int(psutil.virtual_memory().available), *_left_in_groups(machine)])


def _left_in_groups(machine: Path) -> Iterator[int]:
    """What each limit on this process, or on a group around it, leaves."""
    membership = machine / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        version = 1 if "memory" in controllers.split(",") else 2
        if controllers and version == 2:
            continue  # a controller of something else
        below, limit, use, spare = GROUPS[version]
        top = machine / "sys/fs/cgroup" / below
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if (folder / limit).exists() and (most := (folder / limit).read_text().strip()) != "max":
                statistics = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                yield int(most) - int((folder / use).read_text()) + int(statistics.get(spare, 0))
            if folder == top:
                break
