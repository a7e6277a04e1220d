"""Merges in children that kill themselves at a chosen touch of the file system; started by test_merge_kill.py.

    python -m tests.support.merge_victim RUN OUT

Reads numbers from standard input, one a line. For each a child merges RUN into OUT and dies by SIGKILL at that event
below OUT's parent folder (0: never). Prints `EXIT EVENTS` of the child.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from train.config import MergeConfig
from train.merge.steps import merge
from zerotune.common.errors import UserError

TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def child(run: Path, out: Path, fatal: int, report: int) -> int:
    count = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in TOUCHES and str(arguments[0]).startswith(str(out)):
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        merge(run, out, MergeConfig())
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 64
    os.write(report, str(count).encode())
    return 0


def main(run: Path, out: Path) -> None:
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    for line in sys.stdin:
        seen, report = os.pipe()
        pid = os.fork()
        if not pid:
            os._exit(child(run, out, int(line), report))
        os.close(report)
        events = os.read(seen, 100).decode()
        os.close(seen)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), events or "-", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
