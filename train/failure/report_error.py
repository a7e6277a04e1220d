"""Reports the error that ends this process: once, on the terminal and to the launcher."""

from __future__ import annotations

import os
import sys

from train.errors import EndedWithError
from train.failure.heartbeat import HEARTBEAT
from zerotune.common.errors import UserError
from zerotune.common.mask_secrets import printable
from zerotune.common.process_exit import report_to_launcher

_REPORTED: list[Exception] = []


def report_error(error: Exception) -> int:
    """Print the error unless it was printed before. Returns the exit code (docs/resume.md)."""
    code = error.exit_code if isinstance(error, UserError) else 1
    if error in _REPORTED:
        return code
    _REPORTED.append(error)
    rank = int(os.environ.get("RANK", 0))
    if isinstance(error, UserError):
        message = printable(f"[rank {rank}] {error}" if rank else str(error))
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
    else:
        message = printable(f"{type(error).__name__}: {error}")
        if "RANK" in os.environ:
            sys.stderr.write(f"[rank {rank}] failed after step {HEARTBEAT.step}, in `{HEARTBEAT.phase}`:\n")
        # The interpreter would print it too, but might first wait for ranks that wait for this one.
        sys.excepthook(type(error), error, error.__traceback__)
    report_to_launcher(message, is_first=not isinstance(error, EndedWithError))
    return code
