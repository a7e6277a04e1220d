"""The processes of an evaluation. Each holds the whole model and answers its share of the requests.

Ranks exchange only answers, which are small Python objects, by gloo on any device, and wait only at the end.
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
    """This process (`index`) of `count` processes."""

    index: int
    count: int
    device: torch.device

    def gather(self, mine: list[T]) -> list[T]:
        """Concatenate the items of all ranks, in rank order, on every rank."""
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
        """Destroy the process group."""
        if self.count > 1:
            distributed.destroy_process_group()


def join() -> Ranks:
    """Join the process group that `accelerate launch` or `torchrun` describes in the environment, if any."""
    index, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if count > 1:
        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        if distributed.get_world_size() != count:
            raise UserError(
                f"{count} processes were launched, but they formed a group of {distributed.get_world_size()}"
            )
    requested = int(os.environ.get("ZEROTUNE_RANKS") or count)
    if requested != count:
        raise UserError(f"{requested} processes were requested, but the launcher started {count}")
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
