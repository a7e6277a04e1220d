"""The processes of an evaluation. Each holds the whole model and answers its share; only answers travel between them.

Answers are small Python objects, so gloo carries them on any device, and no rank waits for another before the end.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from zerotune.common.errors import UserError

T = TypeVar("T")
LONGEST_WAIT = timedelta(hours=12)  # for the slowest rank's share


@dataclass(frozen=True)
class Ranks:
    """This process among `count`."""

    index: int
    count: int
    device: torch.device

    def gather(self, mine: list[T]) -> list[T]:
        """The items of all ranks, in the order of the ranks, on every rank."""
        if self.count == 1:
            return mine
        parts: list[list[T] | None] = [None] * self.count
        distributed.all_gather_object(parts, mine)
        return [item for part in parts for item in part or []]

    def share(self, value: T) -> T:
        """The first rank's `value`, on every rank."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values)
        return values[0]

    def close(self) -> None:
        """Leave the group."""
        if self.count > 1:
            distributed.destroy_process_group()


def join() -> Ranks:
    """The group that `accelerate launch` or `torchrun` describes in the environment; alone without one."""
    index, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if count > 1:
        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        if distributed.get_world_size() != count:
            raise UserError(
                f"{count} processes were launched, but they formed a group of {distributed.get_world_size()}"
            )
    asked = int(os.environ.get("ZEROTUNE_RANKS") or count)
    if asked != count:
        raise UserError(f"{asked} processes were asked for, but the launcher started {count}")
    return Ranks(index, count, _device())


def _device() -> torch.device:
    forced_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if forced_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; start fewer processes"
        )
    return torch.device("cuda", local)
