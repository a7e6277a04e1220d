"""Supervised steps on the rows' own answers, added to PPO's steps or between rollouts."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from train.config import Config
from train.data.micro_batches import Shape, epoch_steps, rank_batches
from train.data.token_dataset import Encoded
from train.protocols import Batch, Ranks
from zerotune.common.errors import UserError


def with_answers(rows: Encoded) -> Encoded:
    """The rows that have an answer to learn."""
    kept = np.split(rows.learned_n > 0, rows.starts[1:-1])
    return Encoded([part.only(kept_n) for part, kept_n in zip(rows.parts, kept, strict=True)])


class SftBatches:
    """The micro-batches of any supervised step, as a function of its number.

    lines: messages about rows without an answer. Raises UserError if there are supervised steps but no answers.
    """

    def __init__(self, config: Config, rows: Encoded, shape: Shape, ranks: Ranks) -> None:
        self.rows, self.shape, self.seed, self.ranks = with_answers(rows), shape, config.run.seed, ranks
        self.weights = [source.weight for source in config.data.train]
        self.lines: list[str] = []
        key = "supervised_weight" if config.settings.supervised_weight else "supervised_every"
        if not getattr(config.settings, key):
            return
        if not self._per_epoch:
            raise UserError(
                f"ppo.{key}: no row of data.train has an answer to learn; add rows that have one, or set it to 0"
            )
        if len(self.rows) < len(rows):
            self.lines.append(
                f"{len(rows) - len(self.rows):,} of {len(rows):,} training rows have no answer: used as prompts, "
                f"skipped in supervised steps (ppo.{key})"
            )

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step."""
        epoch, place = divmod(step, self._per_epoch)
        steps = self._epoch(epoch)
        batches = rank_batches(self.rows, steps[place % len(steps)], self.shape, self.ranks.index, self.ranks.count)
        return [replace(batch, counts={"supervised": batch.counts["loss"]}) for batch in batches]

    @cached_property
    def _per_epoch(self) -> int:
        return len(self._epoch(0))

    def _epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        return epoch_steps(self.rows, self.weights, self.shape, self.seed, epoch)
