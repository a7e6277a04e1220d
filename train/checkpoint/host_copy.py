"""Copies tensors into host memory, if there is enough."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from train.protocols import Group

SPARE = 1.2  # required free memory, as a multiple of the size of a copy
MACHINE = Path("/")
# Control groups, version 2 and 1: folder below /sys/fs/cgroup, limit, use, and the part of the use that can be freed.
GROUPS = {
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}

log = logging.getLogger(__name__)


class HostCopy:
    """Copies nested containers with their tensors. A copy is valid until the next one is made.

    The memory is kept for the next copy: on a CPU, new pages take about ten times as long as the copying itself.
    """

    def __init__(self) -> None:
        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self._held_bytes = 0.0  # of all processes of this machine
        self._warned = False

    def fits(self, sizes: Sequence[float], ranks: Group) -> bool:
        """Whether every machine has enough memory for the copies of its ranks. A collective.

        sizes: bytes that each rank would copy. If they do not fit, a WARNING says so once.
        """
        local, locals_ = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        first = ranks.index - local
        here = sum(sizes[first : first + locals_])
        more, free = here - self._held_bytes, available_bytes()
        short = more > 0 and SPARE * more > free
        if short and local == 0 and not self._warned:
            self._warned = True
            log.warning(
                "training waits while checkpoints are written: a copy needs %.1f GB of memory, %.1f GB are free",
                more / 1e9, free / 1e9,
            )  # fmt: skip
        if ranks.sum([float(short)])[0]:
            return False
        self._held_bytes = max(self._held_bytes, here)
        return True

    def __call__(self, contents: dict[str, Any]) -> dict[str, Any]:
        """The copy in host memory; tensors that share memory share it in the copy too."""
        copy = self._stager.stage(contents)
        assert isinstance(copy, dict)  # not a future: asynchronous staging is off
        return copy


def available_bytes(machine: Path = MACHINE) -> int:
    """Free memory of the machine, or of the job or container of this process if that is less."""
    return min([int(psutil.virtual_memory().available), *_left_in_groups(machine)])


def _left_in_groups(machine: Path) -> Iterator[int]:
    """Bytes left under each memory limit of this process's control group and the groups above it."""
    membership = machine / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        version = 1 if "memory" in controllers.split(",") else 2
        if controllers and version == 2:
            continue  # not the memory controller
        below, limit, use, spare = GROUPS[version]
        top = machine / "sys/fs/cgroup" / below
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if (folder / limit).exists() and (most := (folder / limit).read_text().strip()) != "max":
                statistics = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                yield int(most) - int((folder / use).read_text()) + int(statistics.get(spare, 0))
            if folder == top:
                break
