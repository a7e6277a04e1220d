"""Supervised steps on the rows' own answers, beside rollouts or between them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from train.data.micro_batches import Shape, epoch_steps, rank_batches
from train.data.token_dataset import Encoded
from train.protocols import Batch, Ranks


def answered(rows: Encoded) -> Encoded:
    """The rows that have an answer to learn."""
    kept = np.split(rows.learned_n > 0, rows.starts[1:-1])
    return Encoded([part.only(kept_n) for part, kept_n in zip(rows.parts, kept, strict=True)])


class RowSteps:
    """The micro-batches of any step: a function of its number. weights: of the sources."""

    def __init__(self, rows: Encoded, weights: list[float], shape: Shape, seed: int, ranks: Ranks) -> None:
        self.rows, self.weights, self.shape, self.seed, self.ranks = rows, weights, shape, seed, ranks

    @property
    def is_empty(self) -> bool:
        """Whether there is no row to learn."""
        return not self._per_epoch

    def batches(self, step: int) -> list[Batch]:
        """This rank's."""
        epoch, place = divmod(step, self._per_epoch)
        steps = self._epoch(epoch)
        batches = rank_batches(self.rows, steps[place % len(steps)], self.shape, self.ranks.index, self.ranks.count)
        return [replace(batch, counts={"supervised": batch.counts["loss"]}) for batch in batches]

    @cached_property
    def _per_epoch(self) -> int:
        return len(self._epoch(0))

    def _epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        return epoch_steps(self.rows, self.weights, self.shape, self.seed, epoch)
