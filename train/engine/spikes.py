"""Skips the update, on all ranks, when the loss is far above recent losses.

This is decided before the last backward pass, since DeepSpeed updates inside it. The loss is then replaced by NaN,
and every kind of sharding skips the resulting gradient.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from train.protocols import Group

WINDOW = 64  # number of recent losses for the median
LEAST = 8  # with fewer losses, there is no median

log = logging.getLogger(__name__)


class Spikes:
    """Compares the loss of each step with the median of the last updates.

    factor: limit of loss / median; None disables the check. message: describes the last loss if it is a spike.
    recent: losses of the last updates, the oldest first; changed in place.
    """

    def __init__(self, factor: float | None, ranks: Group) -> None:
        self.factor, self.ranks = factor, ranks
        self.recent: list[float] = []
        self.message = ""
        self._loss = math.nan

    def found(self, step: int, sums: Sequence[Mapping[str, Tensor]], counts: Mapping[str, float]) -> bool:
        """Whether the loss of the step is a spike. A collective.

        sums: the loss terms of each micro-batch of this rank. counts: their divisors, over all ranks.
        """
        self.message = ""
        if self.factor is None:
            return False
        mine = sum(float(value) / counts[term] for terms in sums for term, value in terms.items() if counts[term] > 0)
        [self._loss] = self.ranks.sum([mine])
        if len(self.recent) < LEAST or not self._loss > self.factor * statistics.median(self.recent):
            return False  # also for NaN, whose update is skipped anyway
        self.message = (
            f"a loss of {self._loss:.4g} is over {self.factor:g} times the median of the last {len(self.recent)}, "
            f"{statistics.median(self.recent):.4g}"
        )
        if self.ranks.index == 0:
            log.warning("step %d: %s; the update is skipped (optim.spike_factor)", step, self.message)
        return True

    def updated(self) -> None:
        """The update was made: keep its loss for later comparisons."""
        if self.factor is not None and math.isfinite(self._loss):
            self.recent.append(self._loss)
            del self.recent[:-WINDOW]
