"""The optimizer steps of a run over a stream, independent of how it is divided into windows.

Shape suffix: n rows.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from train.config import DurationConfig
from train.data.document import Document
from train.data.micro_batches import Indices, Rows, Shape, order, rank_batches, stream_steps
from train.protocols import Batch, Plan, Ranks

log = logging.getLogger(__name__)


class Window(Rows, Protocol):
    """A part of a stream whose rows are read together."""

    @property
    def notes(self) -> Sequence[str]:
        """Lines for the user about these rows."""
        ...


class Joined:
    """Selected rows of several windows, concatenated, as `Rows`."""

    def __init__(self, parts: Sequence[tuple[Window, Indices]]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(len(chosen_n) for _, chosen_n in parts)])
        self.lengths_n: NDArray[np.int32] = self._joined("lengths_n", np.int32)
        self.learned_n: NDArray[np.int32] = self._joined("learned_n", np.int32)
        self.sources_n: NDArray[np.int16] = self._joined("sources_n", np.int16)

    def _joined(self, name: str, kind: Any) -> NDArray[Any]:
        return np.concatenate([np.empty(0, kind), *(getattr(rows, name)[chosen_n] for rows, chosen_n in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _find(self, index: int) -> tuple[Window, int]:
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        rows, chosen_n = self.parts[part]
        return rows, int(chosen_n[index - self.starts[part]])

    def documents(self, index: int) -> list[Document]:
        rows, row = self._find(index)
        return rows.documents(row)

    def row_id(self, index: int) -> str:
        rows, row = self._find(index)
        return rows.row_id(row)

    def after(self, count: int) -> Joined:
        """The same without the first `count` rows."""
        kept = zip(self.parts, self.starts[:-1].tolist(), strict=True)
        parts = [(rows, chosen_n[max(count - start, 0) :]) for (rows, chosen_n), start in kept]
        return Joined([part for part in parts if len(part[1])])


class StreamedSteps:
    """Steps over a stream: `windows(epoch)`, a collective, gives the windows of one pass.

    A step may begin in one window, or pass, and end in another, so that all steps but the last are full. The stream
    ends with the last row of `duration.max_epochs` passes, or with the row that reaches `duration.max_tokens`.

    plan: its total_steps is the maximum, and the actual number once the last step is given.
    """

    def __init__(
        self,
        windows: Callable[[int], Iterable[Window]],
        shape: Shape,
        seed: int,
        duration: DurationConfig,
        ranks: Ranks,
    ) -> None:
        self.windows, self.shape, self.seed, self.duration, self.ranks = windows, shape, seed, duration, ranks
        self.shown_notes: set[str] = set()
        limits = [duration.max_steps]
        if duration.max_tokens is not None:
            limits.append(-(-duration.max_tokens // shape.tokens_per_step))
        total = min(limit for limit in limits if limit is not None)
        passes = "" if duration.max_epochs is None else f", ended after {duration.max_epochs:g} pass(es) at the latest"
        self.plan = Plan(
            total_steps=total,
            epoch_ends=(),
            tokens_per_step=shape.tokens_per_step,
            rows_per_step=float("nan"),
            padding_share=float("nan"),
            attention_length=shape.longest_row / 2,
            head_share=1.0,
            lines=(f"{total:,} steps of {shape.tokens_per_step:,} tokens, streamed{passes}",),
        )

    def walk(self, start: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each step, from step `start` on. Earlier windows are opened, since row lengths
        determine where steps end, but nothing is computed.
        """
        count, ahead = 0, None
        for step in itertools.islice(self._steps(), self.plan.total_steps):
            if ahead and count > start:
                yield self._batches(*ahead)
            count, ahead = count + 1, step
        self.plan = replace(self.plan, total_steps=count)  # the last step is given only after this
        if ahead and count > start:
            yield self._batches(*ahead)

    def _batches(self, rows: Joined, step_n: Indices) -> list[Batch]:
        if self.ranks.index == 0:
            for note in (note for window, _ in rows.parts for note in window.notes if note not in self.shown_notes):
                self.shown_notes.add(note)
                log.log(logging.WARNING if "WARNING" in note else logging.INFO, "%s", note)
        return rank_batches(rows, step_n, self.shape, self.ranks.index, self.ranks.count)

    def _steps(self) -> Iterator[tuple[Joined, Indices]]:
        rest, before = Joined([]), 0
        for part in self._ordered_windows():
            rest = Joined([*rest.parts, part])
            steps = stream_steps(rest.lengths_n, before, self.shape, self.seed)
            if not steps:
                continue
            yield from ((rest, step_n) for step_n in steps)
            used = sum(map(len, steps))
            before += int(rest.lengths_n[:used].sum(dtype=np.int64))
            rest = rest.after(used)
        if len(rest):
            yield rest, np.arange(len(rest))

    def _ordered_windows(self) -> Iterator[tuple[Window, Indices]]:
        """Each window with its rows in training order, up to the end of the stream."""
        tokens = 0
        limit = self.duration.max_tokens
        for epoch in itertools.count():
            if self.duration.max_epochs is not None and epoch >= self.duration.max_epochs:
                return
            for number, window in enumerate(self.windows(epoch)):
                weights = [1.0] * (
                    int(window.sources_n.max(initial=0)) + 1
                )  # weights were applied when the rows were read
                order_n = order(window.sources_n, weights, self.seed, epoch * 1_000_003 + number, self.shape.shuffle)
                ends_n = tokens + np.cumsum(window.lengths_n[order_n], dtype=np.int64)
                if limit is not None and len(ends_n) and ends_n[-1] >= limit:
                    yield window, order_n[: int(np.searchsorted(ends_n, limit)) + 1]
                    return
                tokens = int(ends_n[-1]) if len(ends_n) else tokens
                yield window, order_n
