"""The optimizer steps of a run, in order: all known beforehand for data at rest, window by window for a stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from train.config import DurationConfig
from train.data.batch import Indices, Rows, Shape, epoch_steps, padding_share, rank_batches
from train.protocols import Batch, Plan, Ranks

SHOWN_STEPS = 64  # padding is measured on so many steps of the first epoch


class Steps(Protocol):
    """Where a supervised objective's optimizer steps come from."""

    plan: Plan

    def walk(self, start: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each step, from step `start` on."""
        ...


class FixedSteps:
    """Steps over rows at rest."""

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
    """The arithmetic of a run whose first epoch has the steps `first`, and that ends after `last_share` of its last."""
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
            f"{len(rows):,} rows, {int(lengths_n.sum()):,} tokens, {learned:,} of them learned",
            f"{total:,} steps: {len(first):,} an epoch, {epochs}, {tokens:,} tokens in all",
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
    """How many steps of this epoch are run: all of them, or up to the first limit."""
    kept = len(tokens_after)
    if duration.max_epochs is not None:
        kept = min(kept, max(1, round(kept * min(duration.max_epochs - epoch, 1.0))))
    if duration.max_steps is not None:
        kept = min(kept, duration.max_steps - steps_before)
    if duration.max_tokens is not None:
        kept = min(kept, int(np.searchsorted(tokens_after, duration.max_tokens)) + 1)
    return kept


class StreamedSteps:
    """Steps over a stream of windows: `windows(epoch)` yields the tokenised rows of one window after another."""

    def __init__(
        self, windows: Callable[[int], Iterator[Rows]], shape: Shape, seed: int, duration: DurationConfig, ranks: Ranks
    ) -> None:
        self.windows, self.shape, self.seed, self.ranks = windows, shape, seed, ranks
        limits = [duration.max_steps]
        if duration.max_tokens is not None:
            limits.append(math.ceil(duration.max_tokens / shape.tokens_per_step))
        total = min(limit for limit in limits if limit is not None)
        self.plan = Plan(
            total_steps=total,
            epoch_ends=(),
            tokens_per_step=shape.tokens_per_step,
            rows_per_step=float("nan"),
            padding_share=float("nan"),
            attention_length=shape.longest_row / 2,
            head_share=1.0,
            lines=(
                f"{total:,} steps of about {shape.tokens_per_step:,} tokens, streamed (the epoch's length is unknown)",
            ),
        )

    def walk(self, start: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each step, from step `start` on; windows before it are passed over, not
        recomputed.
        """
        step = epoch = 0
        while step < self.plan.total_steps:
            for index, window in enumerate(self.windows(epoch)):
                weights = [1.0] * (int(window.sources_n.max(initial=0)) + 1)  # mixed already while the rows were read
                steps = epoch_steps(window, weights, self.shape, self.seed, epoch * 1_000_003 + index)
                for step_n in steps[max(start - step, 0) :]:
                    yield rank_batches(window, step_n, self.shape, self.ranks.index, self.ranks.count)
                step += len(steps)
                if step >= self.plan.total_steps:
                    return
            epoch += 1
