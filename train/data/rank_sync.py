"""Work that some ranks do while the others wait, without a time limit; an error ends all ranks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from train.protocols import Ranks
from zerotune.common.errors import UserError

T = TypeVar("T")
BEAT_SECONDS = 10.0  # collectives time out after minutes, so waiting ranks exchange something more often


def together(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do `work` on every rank, wait for all, and return the result of this rank.

    Raises:
        UserError: On every rank if any failed, with the message of the first; a rank that failed raises its own error.
    """
    if ranks.count == 1:
        return work()
    done = threading.Event()
    result: list[T] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            result.append(work())
        except Exception as error:  # the other ranks must learn of any error
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
    return result[0]


def from_first(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """What `work` gives on the first rank (values of JSON), on all ranks. Raises UserError as `together`."""
    return json.loads(share(ranks, together(ranks, lambda: json.dumps(work()) if ranks.index == 0 else "")))


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def share(ranks: Ranks, text: str, origin: int = 0) -> str:
    """The text of rank `origin`, on all ranks. Ranks exchange only sums, so it is sent as numbers."""
    if ranks.count == 1:
        return text
    data = text.encode() if ranks.index == origin else b""
    length = int(ranks.sum([float(len(data))])[0])
    if not length:
        return ""
    values = ranks.sum(list(map(float, data)) if data else [0.0] * length)
    return bytes(map(int, values)).decode()
