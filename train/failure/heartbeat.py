"""The heartbeat of this process: its phase and that it makes progress. `train.failure.watchdog` reads it from a thread.

A beat costs one or two assignments, so it may stand in any inner loop.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Heartbeat:
    """phase: what the process does now, for messages. place: number of phases entered; of two ranks, the one with the
    lower place is behind. beats: counts progress. step: optimizer steps done in the whole run. lively: whether this
    process has done one. writing: whether a checkpoint is being written in the background.
    """

    phase: str = "setting up"
    place: int = 0
    beats: int = 0
    step: int = 0
    lively: bool = False
    writing: bool = False
    _slow: bool = True

    @property
    def slow(self) -> bool:
        """Whether a long time without a beat is normal: before the first step, and in slow phases."""
        return self._slow or not self.lively

    def enter(self, phase: str, slow: bool = False) -> None:
        """Begin a phase. All ranks enter the same phases in the same order."""
        self.phase, self._slow = phase, slow
        self.place += 1
        self.beats += 1

    def beat(self) -> None:
        """Progress inside the phase."""
        self.beats += 1

    def done(self, step: int) -> None:
        """An optimizer step has finished."""
        self.step, self.lively = step, True


HEARTBEAT = Heartbeat()
