"""Ranks for tests that need no processes: alone, or as threads that really wait for one another."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class Solo:
    """A run of one process."""

    index = 0
    count = 1
    device = torch.device("cpu")

    def sum(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def barrier(self) -> None:
        pass


class Whole(Solo):
    """The same as PPO needs it: its weights are whole anyway."""

    def whole(self, model: Any) -> Any:
        return contextlib.nullcontext(model)

    def whole_copy(self, model: Any) -> Any:
        return contextlib.nullcontext()


class Threads:
    """One rank among threads; `together` makes them."""

    device = torch.device("cpu")

    def __init__(self, index: int, board: list[list[float]], meeting: threading.Barrier) -> None:
        self.index, self.count = index, len(board)
        self._board, self._meeting = board, meeting

    def sum(self, values: Sequence[float]) -> list[float]:
        self._board[self.index] = list(values)
        self._meeting.wait()
        joined = [sum(column) for column in zip(*self._board, strict=True)]
        self._meeting.wait()
        return joined

    def barrier(self) -> None:
        self._meeting.wait()


def together(count: int, work: Callable[[Threads], Result]) -> list[Result | Exception]:
    """What `work` returned or raised on each of `count` ranks. Who waits for one that never comes fails in 10 s."""
    board: list[list[float]] = [[] for _ in range(count)]
    meeting = threading.Barrier(count, timeout=10)

    def attempt(index: int) -> Result | Exception:
        try:
            return work(Threads(index, board, meeting))
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(attempt, range(count)))
