"""Asking a run to stop: SIGTERM, SIGUSR1, SIGUSR2, a file named STOP in the run folder, or a deadline.

Each only raises a flag; the loop looks at it between steps, agrees with the other ranks, saves and leaves.
This module imports nothing heavy: `main` installs it before anything else, so that no signal comes too early.
"""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

from eval.files import write_atomically
from eval.masking import mask

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
STOP_FILE = "STOP"
STATUS_FILE = "status.json"

State = Literal["running", "preempted", "finished", "failed"]


class Stop:
    """One flag for all the ways to ask for a stop. The first reason counts; asking again changes nothing.

    The deadline counts from when this object is made.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._started = time.monotonic()
        self._deadline: float | None = None
        self._file: Path | None = None
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> Stop:
        """Take the signals; in the main thread. Child processes that are forked later get the former handlers back."""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._take)
        os.register_at_fork(after_in_child=self._release)
        return self

    def watch(self, run_folder: Path | None, after_minutes: float | None = None) -> None:
        """Look for the STOP file in `run_folder` too (None: leave that to another rank), and stop after a time."""
        self._file = None if run_folder is None else run_folder / STOP_FILE
        self._deadline = None if after_minutes is None else self._started + 60 * after_minutes

    def requested(self) -> bool:
        """Whether this rank was asked to stop. Costs at most one look at the disk."""
        if self.reason is None and self._file is not None and self._file.exists():
            self.reason = f"{STOP_FILE} file"
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "deadline"
        return self.reason is not None

    def obeyed(self) -> None:
        """The run has saved and leaves: remove the STOP file, or the next start would stop at once."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _release(self) -> None:
        """In a forked child: a pool ends its workers by SIGTERM, which a launcher may have us ignore (node.sh)."""
        if signal.SIGTERM in self._before:
            self.restore()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def __enter__(self) -> Stop:
        return self.install()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def slurm_start() -> str | None:
    """Number of the SLURM job and how often it was started again, as 77.1; None outside of SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    return job and f"{job}.{os.environ.get('SLURM_RESTART_COUNT') or 0}"


def write_status(
    run_folder: Path, state: State, step: int, reason: str | None = None, exit_code: int | None = None, **extra: Any
) -> None:
    """Say in status.json how the run stands, for scripts that decide whether to start it again. Replaced in one go.

    extra: further JSON values. Raises CannotWriteError.
    """
    content = {
        "state": state,
        "step": step,
        "reason": None if reason is None else mask(reason),
        "exit_code": exit_code,
        "job": slurm_start(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **extra,
    }
    write_atomically(run_folder / STATUS_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
