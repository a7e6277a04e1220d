"""Work that some ranks do while the others wait, without a time limit and without ever leaving anyone behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from train.protocols import Ranks
from zerotune.common.errors import UserError

T = TypeVar("T")
BEAT_SECONDS = 10.0  # collectives give up after minutes of silence, so the waiting ranks are kept busy


def together(ranks: Ranks, work: Callable[[], T] | None) -> T | None:
    """Do `work` (None: nothing to do) on every rank and go on when all are done; what this rank's own work returned.

    Raises:
        UserError: On every rank if any failed: the message of the first that did. That one raises its own error.
    """
    if ranks.count == 1:
        return work() if work else None
    done = threading.Event()
    result: list[T] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            if work:
                result.append(work())
        except Exception as error:  # whatever it is, the other ranks must hear of it
            failure.append(error)
        finally:
            done.set()

    threading.Thread(target=run, daemon=True).start()
    while True:
        done.wait(BEAT_SECONDS)
        state = [0.0] * (1 + ranks.count)
        is_done = done.is_set()
        state[0] = float(not is_done)
        state[1 + ranks.index] = float(is_done and bool(failure))
        working, *failed = ranks.sum(state)
        if not working:
            break
    if any(failed):
        first = next(index for index, flag in enumerate(failed) if flag)
        message = share(ranks, _message(failure[0]) if failure else "", first)
        raise failure[0] if failure else UserError(message)
    return result[0] if result else None


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def share(ranks: Ranks, text: str, origin: int = 0) -> str:
    """The text of one rank, on all ranks. Sums are the only thing that ranks exchange, so it travels as numbers."""
    if ranks.count == 1:
        return text
    data = text.encode() if ranks.index == origin else b""
    length = int(ranks.sum([float(len(data))])[0])
    if not length:
        return ""
    values = ranks.sum(list(map(float, data)) if data else [0.0] * length)
    return bytes(map(int, values)).decode()
