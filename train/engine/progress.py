"""Shows loss, speed and time left on the terminal, or writes them into a log."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from zerotune.common.console import duration

_LINE_SECONDS = 10.0  # between two lines of a log
_WINDOW_STEPS = 50  # number of last steps that estimate the time left


class ProgressBar:
    """A bar on a terminal; elsewhere a line every 10 seconds. Does nothing outside the main process.

    Args:
        stream: Output, by default standard error.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self, main_process: bool, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._main_process = main_process
        self._console = Console(file=stream or sys.stderr)
        self._clock = clock
        self._last_line = float("-inf")
        self._ticks: list[float] = []
        self._total: int | None = None
        self._bar: tuple[Progress, TaskID] | None = None
        self._close = contextlib.ExitStack()

    def start(self, step: int, total_steps: int | None) -> None:
        """Begin after `step`. Without a total, the time left is not shown."""
        self._total = total_steps
        self._ticks = []
        if self._main_process and self._console.is_terminal:
            columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
            progress = Progress(*columns, console=self._console, auto_refresh=False)
            task = progress.add_task("", total=total_steps, completed=step)
            self._close.enter_context(progress)
            self._close.callback(_send_logs_above_the_bar())
            self._bar = progress, task

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show the state after an optimizer step."""
        if not self._main_process:
            return
        self._ticks = [*self._ticks[-_WINDOW_STEPS:], self._clock()]
        words = [f"loss {loss:.4f}", f"{tokens_per_second:,.0f} tokens/s"]
        if self._total and len(self._ticks) > 1:
            step_seconds = (self._ticks[-1] - self._ticks[0]) / (len(self._ticks) - 1)
            words.append(f"{duration(step_seconds * max(self._total - step, 0))} left")
        if self._bar:
            progress, task = self._bar
            progress.update(task, completed=step, description="  ".join(words), refresh=True)
        elif step == self._total or self._ticks[-1] - self._last_line >= _LINE_SECONDS:
            self._last_line = self._ticks[-1]
            of = f"/{self._total}" if self._total else ""
            self._console.file.write(f"step {step}{of}  {'  '.join(words)}\n")
            self._console.file.flush()

    def close(self) -> None:
        """Remove the bar and restore the terminal."""
        self._close.close()
        self._bar = None


def _send_logs_above_the_bar() -> Callable[[], None]:
    """Send logs to rich's sys.stderr, which prints above the bar. Returns a function that undoes it."""
    moved = []
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__:
            handler.setStream(sys.stderr)
            moved.append(handler)

    def undo() -> None:
        for handler in moved:
            handler.setStream(sys.__stderr__)

    return undo
