"""Detects that a run hangs, and which rank causes it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from train.failure.background import THREAD, Background
from train.failure.heartbeat import HEARTBEAT
from train.failure.rank_status import RankStatus

SLOW = 10  # the limit is this many times longer in phases that are known to be slow
ROOT = Path(__file__).resolve().parents[2]
WAITING = (
    "/torch/distributed/",
    "/torch/nn/parallel/distributed.py",
    "/deepspeed/",
)  # a thread whose innermost frame is in one of these waits for other ranks
COLLECTIVES = ("sum", "barrier", "gather")  # functions of SYNC_MODULES that wait for other ranks
SYNC_MODULES = ("runtime.py", "background.py")


class StallDetector:
    """Measures for how long no rank has made progress, as seen by one rank."""

    def __init__(self, rank: int, limit_seconds: float) -> None:
        self.rank, self.limit_seconds = rank, limit_seconds
        self.seconds = 0.0
        self._beats = -1
        self._others: Mapping[int, int] | None = None

    def is_stalled(self, elapsed_seconds: float, statuses: Callable[[], Mapping[int, RankStatus]]) -> bool:
        """Whether the limit is exceeded. Reads the status of other ranks only after half of the limit."""
        if HEARTBEAT.beats != self._beats:
            self._beats, self.seconds, self._others = HEARTBEAT.beats, 0.0, None
            return False
        self.seconds += elapsed_seconds
        if self.seconds < self._limit(HEARTBEAT.slow) / 2:
            return False
        found = statuses()
        others = {rank: one.beats for rank, one in found.items() if rank != self.rank}
        if self._others is not None and others != self._others:
            self.seconds = 0.0
        self._others = others
        return self.seconds >= self._limit(HEARTBEAT.slow or any(one.slow for one in found.values()))

    def _limit(self, slow: bool) -> float:
        return self.limit_seconds * (SLOW if slow else 1)


def find_hanging(statuses: Mapping[int, RankStatus], still_seconds: float) -> tuple[list[int], str]:
    """The ranks that hang, and the message for the user.

    These are the ranks that do not respond; else those that are behind; of these, those that do not wait for others.
    """
    mute = [one for one in statuses.values() if not one.at]
    last = min(one.place for one in statuses.values())
    behind = [one for one in statuses.values() if one.place == last]
    stuck = mute or [one for one in behind if not one.waits] or behind
    ranks = [one.rank for one in stuck]
    named = "; ".join(
        f"rank {one.rank} hangs in `{one.phase}`" + (f" at {one.at}" if one.at else " and does not respond")
        for one in stuck
    )
    waiting = ", ".join(str(rank) for rank in statuses if rank not in ranks)
    return ranks, (
        f"After step {stuck[0].step} no rank made progress for {still_seconds:.0f} s: {named}"
        + (f"; waiting: rank {waiting}" if waiting else "")
        + ". The same command resumes from the newest checkpoint. If the run is only slow, raise run.hang_seconds."
    )


def main_thread_location() -> tuple[str, bool]:
    """(innermost line in our own code, whether it waits there for other ranks) of the main thread; of the thread that
    writes a checkpoint if the main thread waits for that one.
    """
    frames = sys._current_frames()
    frame = frames.get(threading.main_thread().ident or 0)
    own = _innermost(frame)
    if own is not None and own.f_code is Background.wait.__code__:
        writers = [thread.ident for thread in threading.enumerate() if thread.name.startswith(THREAD)]
        frame = frames.get(writers[0] or 0) if writers else frame
        own = _innermost(frame)
    waits = frame is not None and any(part in frame.f_code.co_filename for part in WAITING)
    if own is None:
        return "an unknown place", waits
    file, name = Path(own.f_code.co_filename), own.f_code.co_name
    waits = waits or (file.name in SYNC_MODULES and name in COLLECTIVES)
    return f"{file.relative_to(ROOT)}:{own.f_lineno} ({name})", waits


def _innermost(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of a thread that is in our own code."""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in ("train", "eval", "zerotune"):
            return frame
        frame = frame.f_back
    return None
