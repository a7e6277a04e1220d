"""The pulse of this process: where it is, and that it gets on. `train.failure.watchdog` reads it from another thread.

Feeling it costs an assignment or two, so that it may stand wherever something is done again and again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Pulse:
    """phase: what is being done, for people. place: how many phases were entered; of two ranks the one with the lower
    place is behind. beats: signs of life. step: optimizer steps done, of the whole run. lively: whether this process
    has done one. writing: whether a checkpoint is being written beside it.
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
        """Whether a long time without a beat is normal here: before the first step is done, and in slow phases."""
        return self._slow or not self.lively

    def enter(self, phase: str, slow: bool = False) -> None:
        """A phase begins. All ranks enter the same ones in the same order."""
        self.phase, self._slow = phase, slow
        self.place += 1
        self.beats += 1

    def beat(self) -> None:
        """Something was done inside the phase."""
        self.beats += 1

    def done(self, step: int) -> None:
        """An optimizer step is done."""
        self.step, self.lively = step, True


PULSE = Pulse()
