"""Ends processes: exit codes, Ctrl-C, and messages for the launcher."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

PATIENCE_SECONDS = 5.0
CTRL_C = 128 + signal.SIGINT  # as shells count it
FROM_TERMINAL = (signal.SIGINT, signal.SIGHUP)  # Ctrl-C, and a terminal that was closed


def exit_quietly_on_ctrl_c() -> None:
    """Let Ctrl-C end the program without a traceback while it starts. If ignored (`nohup`, `&`), it stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def report_to_launcher(message: str, is_first: bool = True) -> None:
    """Let `accelerate launch` and torchrun print the reason at the end.

    is_first: whether this process failed first, not as a consequence. Launchers report the earliest failure by whole
    seconds, and of several in one second that of the lowest rank.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        report = {"message": message, "timestamp": int(time.time()) + (0 if is_first else 1)}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(report), encoding="utf-8")


def wait_for_first_process() -> None:
    """Wait before reporting an error that every process finds, except in the first process of a machine.

    The first one reports it and exits; the launcher then ends the others before they repeat the message.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing to save yet
        time.sleep(PATIENCE_SECONDS)


def exit_process(code: int) -> NoReturn:
    """End this process with the exit `code` after flushing its output.

    One of several processes skips the interpreter's shutdown. Threads of process groups may still free Python objects
    at that time, and Python would end them inside C++, which aborts the process ("terminate called without an active
    exception"): a finished run was then sometimes reported as failed. A single process that ends after Ctrl-C (code
    130) ends by SIGINT, so that a shell stops its loop as well.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" and code != CTRL_C:
        sys.exit(code)
    logging.shutdown()
    with contextlib.suppress(OSError):  # a terminal that was closed
        sys.stdout.flush()
        sys.stderr.flush()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)
