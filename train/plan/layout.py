"""How the state of a run is divided among its ranks."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """kind: as `Runtime.kind`. item: bytes of a number in matrix products. micro_batches: of a rank in a step.

    The other values are keys of DeepSpeed's `zero_optimization` with its defaults; sizes in elements. allreduces:
    whether ZeRO-1 and -2 send the sums of gradients to all ranks, not only to those that keep them.
    """

    kind: str = "single"
    ranks: int = 1
    item: int = 2
    micro_batches: int = 1
    reduce_bucket: int = 500_000_000
    persistent_size: int = 100_000
    persistent_total: int = sys.maxsize
    live: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    overlaps: bool = False
    allreduces: bool = True
    contiguous: bool = True
    offloads_optimizer: bool = False
    offloads_weights: bool = False

    @property
    def stage(self) -> int:
        """The ZeRO stage; 0 without ZeRO."""
        return int(self.kind[-1]) if self.kind.startswith("zero") else 0
