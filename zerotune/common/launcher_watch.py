"""A thread that reacts to a second Ctrl-C, and to the end of the launcher, when the main thread cannot.

Python runs signal handlers between instructions of the main thread. A process that waits in a collective, or for a GPU
that hangs, would notice neither.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from zerotune.common.process_exit import FROM_TERMINAL

TICK_SECONDS = 1.0
GRACE_SECONDS = 10.0  # for the main thread to exit after Ctrl-C if there is nothing to save
LAUNCHERS = (
    "accelerate",
    "accelerate-launch",
    "accelerate.commands.launch",
    "torchrun",
    "torch.distributed.run",
    "deepspeed",
)
INIT = ("init", "systemd")  # parents of orphaned processes


class Sentinel:
    """Watches for signals and the launcher while its block runs in the main thread.

    saves: whether the main thread must save something before it exits. on_launcher_death: called in the watching thread
    with the reason when the launcher has exited; if it returns, the process continues.
    """

    def __init__(
        self, saves: Callable[[], bool] = lambda: False, on_launcher_death: Callable[[str], None] | None = None
    ) -> None:
        self._saves, self._on_launcher_death = saves, on_launcher_death or exit_without_launcher
        self._received: dict[int, int] = {}  # terminal signal -> how often
        self._launcher = _launcher()
        self._deadline: float | None = None
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._thread = threading.Thread(target=self._watch, name="sentinel", daemon=True)

    def __enter__(self) -> Sentinel:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see `exit_quietly_on_ctrl_c`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_stop_watching)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        self._write.close()  # ends the thread
        self._thread.join(TICK_SECONDS)
        self._read.close()

    @property
    def interrupted(self) -> int | None:
        """The first terminal signal received, if any."""
        return next(iter(self._received), None)

    def _watch(self) -> None:
        if self._launcher is None and os.environ.get("TORCHELASTIC_RUN_ID") and _parent_name() in INIT:
            self._on_launcher_death("the launcher exited before this process had started")
        while True:
            if select.select([self._read], [], [], TICK_SECONDS)[0]:
                numbers = self._read.recv(4096)
                if not numbers:
                    return
                for number in filter(FROM_TERMINAL.__contains__, numbers):
                    self._receive(number)
            if self._launcher is not None and os.getppid() != self._launcher:
                gone, self._launcher = self._launcher, None
                self._on_launcher_death(f"the launcher (process {gone}) has exited")
            if self._deadline is not None and time.monotonic() > self._deadline and not self._saves():
                os._exit(128 + (self.interrupted or signal.SIGINT))

    def _receive(self, number: int) -> None:
        self._received[number] = self._received.get(number, 0) + 1
        if self._received.get(signal.SIGINT, 0) > 1:
            os._exit(128 + signal.SIGINT)
        if not self._saves():
            self._deadline = self._deadline or time.monotonic() + GRACE_SECONDS


def _stop_watching() -> None:
    """In a forked child."""
    with contextlib.suppress(ValueError):  # forked in another thread than the main one
        signal.set_wakeup_fd(-1)


def exit_without_launcher(reason: str) -> None:
    """Exit: without its launcher this process might wait forever, or continue without anyone able to stop it."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        write_stderr(f"{reason}: this process exits too")
    os._exit(1)


def write_stderr(text: str) -> None:
    """Write a line to stderr without Python's buffers, from any thread; ignored if the terminal is closed."""
    try:
        os.write(2, f"{text}\n".encode())
    except OSError:
        return


def _launcher() -> int | None:
    """The parent process if it is a launcher. A shell is not watched: it may exit, as after `nohup python ... &`."""
    pid = os.getppid()
    try:
        parts = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return None
    own = sys.argv[1:]
    is_launcher = any(Path(part).name in LAUNCHERS for part in parts) and parts[len(parts) - len(own) :] == own
    return pid if is_launcher else None


def _parent_name() -> str:
    try:
        return "init" if os.getppid() == 1 else Path(f"/proc/{os.getppid()}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
