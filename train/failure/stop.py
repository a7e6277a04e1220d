"""Requests to stop a run: Ctrl-C (SIGINT), a closed terminal (SIGHUP), SIGTERM, SIGUSR1, SIGUSR2, a file named STOP in
the run folder, or a deadline.

Each sets a flag; the loop reads it between steps, agrees with the other ranks, saves a checkpoint and exits. Before the
first step and after the last checkpoint there is nothing to save: then Ctrl-C and a closed terminal end it at once.
This module imports nothing heavy: `main` installs it first, so that no signal comes too early.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from zerotune.common.errors import CannotWriteError
from zerotune.common.files import json_object, write_atomically
from zerotune.common.launcher_watch import Sentinel, exit_without_launcher, write_stderr
from zerotune.common.mask_secrets import mask
from zerotune.common.process_exit import FROM_TERMINAL

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
STOP_FILE = "STOP"
STATUS_FILE = "status.json"
TOUCH_SECONDS = 30.0

State = Literal["running", "preempted", "finished", "failed"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a closed terminal while there is nothing to save."""


class Stop:
    """One flag for all stop requests. The first reason is kept; a second Ctrl-C ends the process at once
    (`zerotune.common.launcher_watch`).

    The deadline counts from the creation of this object. on_launcher_death: called in a thread, with the reason.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.interrupt: signal.Signals | None = None  # the first signal that came from a terminal
        self.on_launcher_death: Callable[[str], None] = exit_without_launcher
        self._started = time.monotonic()
        self._deadline: float | None = None
        self._file: Path | None = None
        self._before: dict[signal.Signals, Any] = {}
        self.leaves = False  # at once, without saving
        self._saves = False
        self._sentinel = Sentinel(lambda: self._saves, self._launcher_died)

    def __enter__(self) -> Stop:
        """Install the signal handlers, in the main thread. Forked processes restore the former ones."""
        ignored = [number for number in FROM_TERMINAL if signal.getsignal(number) == signal.SIG_IGN]  # nohup, `&`
        for number in (*SIGNALS, *FROM_TERMINAL):
            if number not in ignored:
                self._before[number] = signal.signal(number, self._take)
        os.register_at_fork(after_in_child=self._release)
        sys.unraisablehook = _ignore_interrupted
        self._sentinel.__enter__()
        return self

    @property
    def exit_code(self) -> int:
        """Of a stopped run: 0, or 128 + signal after Ctrl-C or a closed terminal."""
        return 0 if self.interrupt is None else 128 + self.interrupt

    @contextlib.contextmanager
    def saving(self, saves: bool = True) -> Iterator[None]:
        """While the block runs there is something to save: Ctrl-C and a closed terminal only set the flag. With False,
        for a block inside, they raise Interrupted again. If they came before, either raises it at once.
        """
        before, self._saves = self._saves, saves
        try:
            if self.interrupt is not None:  # a library may have swallowed the exception
                raise Interrupted(self.interrupt.name)
            yield
        finally:
            self._saves = before

    def leave(self) -> int:
        """Report that the process ends before the run has begun. Returns the exit code."""
        if os.environ.get("RANK", "0") == "0" and self.interrupt is not None:
            write_stderr(f"Stopped by {self.interrupt.name} before the run had begun; nothing was changed.")
        return self.exit_code

    def watch(self, run_folder: Path | None, after_minutes: float | None = None) -> None:
        """Also stop on a STOP file in `run_folder` (None: another rank checks), and after a time."""
        self._file = None if run_folder is None else run_folder / STOP_FILE
        self._deadline = None if after_minutes is None else self._started + 60 * after_minutes

    def requested(self) -> bool:
        """Whether this rank was asked to stop. Costs at most one file lookup."""
        if self.reason is None and self._file is not None and self._file.exists():
            self.reason = f"{STOP_FILE} file"
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "deadline"
        return self.reason is not None

    def clear(self) -> None:
        """Remove the STOP file once the run has saved; otherwise the next start would stop at once."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        self._sentinel.__exit__()
        sys.unraisablehook = sys.__unraisablehook__
        self._give_back()

    def _give_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def _release(self) -> None:
        """In a forked child: a pool ends its workers by SIGTERM, which slurm/node.sh may make us ignore."""
        if signal.SIGTERM in self._before:
            self._give_back()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name
        if number not in FROM_TERMINAL or self.interrupt is not None:
            return
        self.interrupt = signal.Signals(number)
        if number == signal.SIGHUP:
            _detach_from_terminal()
        if not self._saves:
            self.leaves = True
            raise Interrupted(self.interrupt.name)
        if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            write_stderr(
                "Ctrl-C: the run saves after this step and stops. Press Ctrl-C again to end it now, without saving"
            )

    def _launcher_died(self, why: str) -> None:
        """Ends this process if the launcher was killed; else stops the run: `accelerate launch` of one process does not
        wait for its child after Ctrl-C.
        """
        received = self._sentinel.interrupted
        waits = "TORCHELASTIC_RUN_ID" in os.environ
        killed = waits and received != signal.SIGHUP  # by SIGKILL, or by a second Ctrl-C
        if killed or (received is None and not self._saves):
            self.on_launcher_death(why)
        else:
            self.reason = self.reason or why


def _ignore_interrupted(unraisable: sys.UnraisableHookArgs) -> None:
    """Ignore an Interrupted that was raised in a destructor: the flag is set."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)


def _detach_from_terminal() -> None:
    """Redirect output from a closed terminal: writing to it fails, and would end the run before it has saved."""
    void = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            os.tcgetpgrp(stream.fileno())  # type: ignore[union-attr]
        except OSError as error:
            if error.errno == errno.EIO:  # ENOTTY: a file, a pipe
                os.dup2(void, stream.fileno())  # type: ignore[union-attr]
        except (ValueError, AttributeError):  # closed, or none
            continue
    os.close(void)


def slurm_start() -> str | None:
    """Number of the SLURM job and how often it was started again, as 77.1; None outside of SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    return job and f"{job}.{os.environ.get('SLURM_RESTART_COUNT') or 0}"


class Status:
    """RUN/status.json: the state of the run, for scripts that decide whether to restart it. Thread-safe.

    Written only after `begin`: a start that fails earlier keeps the file of the previous one.
    """

    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / STATUS_FILE
        self.begun = False
        self._lock = threading.RLock()
        self._step: int | None = None  # the step in the file while its state is running

    @property
    def is_running(self) -> bool:
        """Whether the last state that this rank wrote is running."""
        return self._step is not None

    def begin(self, step: int) -> None:
        """The run has begun or resumed after `step`. Raises CannotWriteError."""
        self.begun = True
        self.write("running", step)

    def write(
        self,
        state: State,
        step: int,
        reason: str | None = None,
        exit_code: int | None = None,
        durable: bool = True,
        **extra: Any,
    ) -> None:
        """Replace the file atomically. extra: further JSON values. Raises CannotWriteError, also if the run folder was
        removed.
        """
        with self._lock:
            if not self.begun:
                return
            self._step = step if state == "running" else None
            if not self.path.parent.is_dir():
                raise CannotWriteError(f"{self.path}: cannot be written: the folder was removed")
            content = {
                "state": state,
                "step": step,
                "reason": None if reason is None else mask(reason),
                "exit_code": exit_code,
                "job": slurm_start(),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                **extra,
            }
            write_atomically(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", durable)

    def move(self, step: int) -> None:
        """Update the step of a running run. Called often, so not synced to disk; write errors are ignored. In a long
        step the file is touched, which tells other hosts that the run is alive.
        """
        with self._lock, contextlib.suppress(OSError, CannotWriteError):
            if self._step not in (None, step):
                self.write("running", step, durable=False)
            elif self._step is not None and time.time() - self.path.stat().st_mtime > TOUCH_SECONDS:
                os.utime(self.path)


def read_status(run_folder: Path) -> dict[str, Any]:
    """The content of RUN/status.json; empty if there is none."""
    return json_object(run_folder / STATUS_FILE)
