"""The optimizer steps of a run over a fixed data set: all steps are known beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from train.config import DurationConfig
from train.data.micro_batches import Indices, Rows, Shape, epoch_steps, padding_share, rank_batches
from train.protocols import Batch, Plan, Ranks
from zerotune.common.console import counted

SHOWN_STEPS = 64  # padding is measured on so many steps of the first epoch


class Steps(Protocol):
    """The optimizer steps of a supervised objective: over a fixed data set, or a stream (`stream_schedule`)."""

    plan: Plan

    def walk(self, start: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each step, from step `start` on."""
        ...


class FixedSteps:
    def __init__(
        self, rows: Rows, weights: Sequence[float], shape: Shape, seed: int, duration: DurationConfig, ranks: Ranks
    ) -> None:
        self.rows, self.weights, self.shape, self.seed, self.ranks = rows, weights, shape, seed, ranks
        ends: list[int] = []
        tokens = 0
        while not _over(len(ends), ends[-1] if ends else 0, tokens, duration):
            steps = self._epoch(len(ends))
            if not ends:
                first = steps
            step_tokens = np.cumsum([int(rows.lengths_n[step].sum()) for step in steps])
            kept = _kept(len(ends), ends[-1] if ends else 0, tokens + step_tokens, duration)
            tokens += int(step_tokens[kept - 1]) if kept else 0
            ends.append((ends[-1] if ends else 0) + kept)
        self.plan = _plan(rows, first, ends, kept / len(steps), tokens, shape, ranks)

    def _epoch(self, epoch: int) -> list[Indices]:
        return epoch_steps(self.rows, self.weights, self.shape, self.seed, epoch)

    def walk(self, start: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each step, from step `start` on."""
        begin = 0
        for epoch, end in enumerate(self.plan.epoch_ends):
            if start < end:
                for step_n in self._epoch(epoch)[max(start - begin, 0) : end - begin]:
                    yield rank_batches(self.rows, step_n, self.shape, self.ranks.index, self.ranks.count)
            begin = end


def _plan(
    rows: Rows,
    first: Sequence[Indices],
    ends: Sequence[int],
    last_share: float,
    tokens: int,
    shape: Shape,
    ranks: Ranks,
) -> Plan:
    """The plan of a run whose first epoch has the steps `first`, and that ends after `last_share` of its last epoch."""
    lengths_n = rows.lengths_n.astype(np.float64)
    total, learned = ends[-1], int(rows.learned_n.sum())
    a_step, rows_a_step = tokens / max(total, 1), sum(map(len, first)) / len(first)
    epochs = f"{len(ends) - 1 + last_share:.4g} epoch"
    epochs += "s" * (epochs != "1 epoch")
    waste = padding_share(rows.lengths_n, first[:SHOWN_STEPS], shape, ranks.count)
    layout = "packed" if shape.packed else "padded"
    return Plan(
        total_steps=total,
        epoch_ends=tuple(ends),
        last_epoch_share=last_share,
        tokens_per_step=a_step,
        rows_per_step=rows_a_step,
        padding_share=waste,
        attention_length=float((lengths_n * (lengths_n + 1) / 2).sum() / lengths_n.sum()),
        head_share=float(learned / lengths_n.sum()),
        lines=(
            f"{counted(len(rows), 'row')}, {int(lengths_n.sum()):,} tokens, {learned:,} of them learned",
            f"{counted(total, 'step')}: {len(first):,} per epoch, {epochs}, {tokens:,} tokens in total",
            f"global batch: {a_step:,.0f} tokens, {rows_a_step:,.1f} rows ({layout}, padding {waste:.1%})",
        ),
    )


def _over(epochs: int, steps: int, tokens: int, duration: DurationConfig) -> bool:
    return any(
        limit is not None and done >= limit
        for done, limit in (
            (epochs, duration.max_epochs),
            (steps, duration.max_steps),
            (tokens, duration.max_tokens),
        )
    )


def _kept(
    epoch: int, steps_before: int, tokens_after: np.ndarray[tuple[int], np.dtype[np.int64]], duration: DurationConfig
) -> int:
    """The number of steps of this epoch that the run makes: all, or up to the first limit."""
    kept = len(tokens_after)
    if duration.max_epochs is not None:
        kept = min(kept, max(1, round(kept * min(duration.max_epochs - epoch, 1.0))))
    if duration.max_steps is not None:
        kept = min(kept, duration.max_steps - steps_before)
    if duration.max_tokens is not None:
        kept = min(kept, int(np.searchsorted(tokens_after, duration.max_tokens)) + 1)
    return kept
