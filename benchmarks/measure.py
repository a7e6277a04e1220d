"""Runs one side in a process of its own: what it said, and the memory that it took."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def measured(
    command: Sequence[str], folder: Path, most_bytes: int | None = None, may_fail: bool = False
) -> tuple[str, float] | None:
    """Standard output, and the peak resident memory in GB of the largest process that the command started.

    most_bytes: address space that it may take; beyond, its allocations fail in place of the machine.
    may_fail: None where it fails; else its last words end the benchmark.
    """
    log = folder / "log.txt"

    def limit() -> None:
        if most_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))

    with log.open("w") as file:
        process = subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=file, text=True, cwd=folder, preexec_fn=limit
        )
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        if may_fail:
            return None
        sys.exit(f"{' '.join(command)}\n{output[-2000:]}\n{log.read_text()[-4000:]}")
    return output, usage.ru_maxrss * 1024 / 1e9
