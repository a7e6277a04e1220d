"""One piece of work beside training, in a thread of its own, and the group in which the ranks meet there.

A collective of the thread must never be taken for one of training's, and which of the two comes first differs from
rank to rank. So the thread has a process group that nothing else uses, over gloo: on the CPU, beside NCCL as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import torch

from train.failure.heartbeat import PULSE
from zerotune.common.errors import UserError

THREAD = "checkpoint"  # beginning of its name


class GlooGroup:
    """The processes of the run in a group of their own. Satisfies `train.protocols.Group`.

    Made by all ranks together. Raises UserError where they do not reach one another.
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
    """At most one piece of work at a time; its error waits for whoever waits for it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=THREAD)
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin, once the work before was waited for."""
        assert self._work is None
        PULSE.writing = True
        self._work = self._thread.submit(_do, work)

    def failed(self) -> bool:
        """Whether `wait` would raise at once."""
        return self._work is not None and self._work.done() and self._work.exception() is not None

    def wait(self) -> None:
        """Until the work is done, if there is any. Raises what it raised, once."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def close(self) -> None:
        """End the thread, after its work."""
        self._thread.shutdown()


def _do(work: Callable[[], None]) -> None:
    try:
        work()
    finally:
        PULSE.writing = False
