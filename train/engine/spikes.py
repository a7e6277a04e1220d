"""A loss that jumps far above those before it: the update is left out, by all ranks.

Decided before the last backward pass, since DeepSpeed updates inside it. NaN in the loss's place then makes a gradient
that every kind of sharding leaves out by itself.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence

from torch import Tensor

from train.protocols import Group

WINDOW = 64  # losses that the median is of; with fewer than LEAST there is none
LEAST = 8

log = logging.getLogger(__name__)


class Spikes:
    """Compares the loss of each step with the median of the last updates.

    factor: how many times the median a loss may be; None compares nothing. said: of the last step's loss, if too high.
    recent: losses of the last updates, the oldest first; changed in place.
    """

    def __init__(self, factor: float | None, ranks: Group) -> None:
        self.factor, self.ranks = factor, ranks
        self.recent: list[float] = []
        self.said = ""
        self._loss = math.nan

    def found(self, step: int, sums: Sequence[Mapping[str, Tensor]], counts: Mapping[str, float]) -> bool:
        """Whether the loss of the step is a spike; called by all ranks together.

        sums: the terms of each micro-batch of this rank. counts: what they are divided by, over all ranks.
        """
        self.said = ""
        if self.factor is None:
            return False
        mine = sum(float(value) / counts[term] for terms in sums for term, value in terms.items() if counts[term] > 0)
        [self._loss] = self.ranks.sum([mine])
        if len(self.recent) < LEAST or not self._loss > self.factor * statistics.median(self.recent):
            return False  # NaN, too: that is left out anyway
        self.said = (
            f"a loss of {self._loss:.4g} is over {self.factor:g} times the median of the last {len(self.recent)}, "
            f"{statistics.median(self.recent):.4g}"
        )
        if self.ranks.index == 0:
            log.warning("step %d: %s; the update is left out (optim.spike_factor)", step, self.said)
        return True

    def learned(self) -> None:
        """The update was made: later losses are compared with its own."""
        if self.factor is not None and math.isfinite(self._loss):
            self.recent.append(self._loss)
            del self.recent[:-WINDOW]
