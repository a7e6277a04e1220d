"""A background thread for one task at a time, and a process group for its collectives.

Collectives of the thread and of training run in a different order on each rank, so they must not share a process group.
The thread has its own one over gloo, on the CPU, also when training uses NCCL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import torch

from train.failure.heartbeat import HEARTBEAT
from zerotune.common.errors import UserError

THREAD = "checkpoint"  # prefix of the thread's name


class GlooGroup:
    """All ranks of the run in a separate gloo group. Satisfies `train.protocols.Group`.

    Creating it is a collective. Raises UserError if the ranks cannot connect.
    """

    def __init__(self, index: int, count: int, timeout: timedelta) -> None:
        self.index, self.count = index, count
        self.process_group: torch.distributed.ProcessGroup | None = None
        if count > 1:
            try:
                self.process_group = torch.distributed.new_group(backend="gloo", timeout=timeout)
            except RuntimeError as error:
                raise UserError(
                    f"checkpoint.asynchronous: the ranks cannot meet over gloo ({error}). Set GLOO_SOCKET_IFNAME to "
                    "the network interface that the nodes share, or checkpoint.asynchronous to false"
                ) from error

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all ranks, in float64."""
        if self.process_group is None:
            return list(values)
        joined = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(joined, group=self.process_group)
        return [float(x) for x in joined.tolist()]

    def barrier(self) -> None:
        """Wait for all."""
        self.sum([0.0])


class Background:
    """Runs at most one task at a time; `wait` raises its error."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=THREAD)
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start a task; the previous one must have been waited for."""
        assert self._work is None
        HEARTBEAT.writing = True
        self._work = self._thread.submit(_do, work)

    def failed(self) -> bool:
        """Whether `wait` would raise at once."""
        return self._work is not None and self._work.done() and self._work.exception() is not None

    def wait(self) -> None:
        """Wait for the task, if there is one. Raises its error once."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def close(self) -> None:
        """Finish the task and end the thread."""
        self._thread.shutdown()


def _do(work: Callable[[], None]) -> None:
    try:
        work()
    finally:
        HEARTBEAT.writing = False
