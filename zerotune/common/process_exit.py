"""How a process ends. Together with others, it does so without taking the interpreter down in order."""

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
    """Until the program can say more, Ctrl-C ends it without a traceback. Ignored stays ignored (`nohup`, `&`)."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def report_to_launcher(message: str, is_first: bool = True) -> None:
    """Have `accelerate launch` and torchrun name the reason in what they print last.

    is_first: whether this process is to blame, and not only ends with another. Launchers blame the earliest one by
    whole seconds, and of several in one second the lowest rank.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        said = {"message": message, "timestamp": int(time.time()) + (0 if is_first else 1)}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(said), encoding="utf-8")


def wait_for_first_process() -> None:
    """Wait, in all processes of a machine but the first, before telling what all of them have found by themselves.

    The first one tells it and leaves; the launcher then ends the others, before they say the same once more.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing has begun that would have to be saved
        time.sleep(PATIENCE_SECONDS)


def exit_process(code: int) -> NoReturn:
    """End this process with the exit `code`, its output written.

    One of several ends at once. Its process groups have threads of their own; one of them may still be freeing a Python
    object when the interpreter goes. Python then ends that thread in the midst of C++, which aborts the process
    ("terminate called without an active exception"): now and then, a run that had finished was reported as failed.
    After Ctrl-C (code 130) one alone ends as by SIGINT: a shell then leaves its loop too, and does not go on with the
    next run.
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
