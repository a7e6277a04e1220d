"""RUN/ranks: one small file per rank with its status, and one that names the rank that failed first.

Before the first step the folder is RUN/.ranks, so that a start that fails keeps the files of an earlier one.

Files reach every node without a collective; a collective is what hangs when these files are needed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TextIO

from train.failure.heartbeat import HEARTBEAT
from train.failure.process import started

FOLDER = "ranks"
STARTING = ".ranks"
FIRST = "first-failure.json"
SETTLE_SECONDS = 2.0  # for a file that was just made to become readable


@dataclass(frozen=True)
class RankStatus:
    """Status of one rank. started: see `process.started`. step to slow: copied from its `Heartbeat`.

    at: after a hang, the line of our code where its main thread is. waits: whether it waits there for other ranks.
    """

    rank: int
    host: str
    pid: int
    started: int | None
    step: int
    phase: str
    place: int
    beats: int
    slow: bool
    at: str = ""
    waits: bool = False


@dataclass(frozen=True)
class Failure:
    """Why the run ends. hang: `rank` detected a hang, which another rank may have caused."""

    rank: int
    exit_code: int
    message: str
    hang: bool = False


def current_status(rank: int, at: str = "", waits: bool = False) -> RankStatus:
    """The status of this process now."""
    pid, now = os.getpid(), HEARTBEAT
    process = (rank, socket.gethostname(), pid, started(pid))
    return RankStatus(*process, now.step, now.phase, now.place, now.beats, now.slow, at, waits)


class RankStatusFolder:
    """The folder, as seen by one rank. If the disk cannot be written, statuses get old; that is not an error here."""

    def __init__(self, run_folder: Path, rank: int) -> None:
        self.folder = run_folder / STARTING
        self._rank = rank

    def _of(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"

    @property
    def _mine(self) -> Path:
        return self._of(self._rank)

    def begin(self) -> None:
        """The run has begun: rank 0 renames the folder, then the other ranks call this too."""
        final = self.folder.with_name(FOLDER)
        if self._rank == 0:
            shutil.rmtree(final, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.rename(final)
        self.folder = final

    @cached_property
    def stacks(self) -> TextIO:
        """The file for stack traces of this rank; kept open for a thread that cannot open one."""
        try:
            return self._mine.with_suffix(".stacks").open("a", encoding="utf-8")
        except OSError:
            return sys.__stderr__ or sys.stderr

    def show_stacks(self) -> None:
        """Write the stacks of all threads of this process."""
        with contextlib.suppress(OSError, ValueError):  # also where the error output is no file
            if self.stacks not in (sys.__stderr__, sys.stderr):
                self.stacks.truncate(0)
            faulthandler.dump_traceback(self.stacks, all_threads=True)

    def clear(self) -> None:
        """Remove the files of an earlier start."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.mkdir()

    def write(self, status: RankStatus) -> None:
        """Replace the status of this rank atomically: other ranks read it at any time."""
        fresh = self._mine.with_suffix(".new")
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps(asdict(status)) + "\n", encoding="utf-8")
            fresh.replace(self._mine)

    def leave(self) -> None:
        """This rank ends and needs no record. The last one removes the folder, and a run folder that is still empty."""
        with contextlib.suppress(OSError):
            for suffix in (".json", ".stacks"):
                self._mine.with_suffix(suffix).unlink(missing_ok=True)
            if not any(self.folder.glob("rank-*.json")):
                shutil.rmtree(self.folder, ignore_errors=True)
                if self.folder.name == STARTING:
                    self.folder.parent.rmdir()

    def read(self) -> Mapping[int, RankStatus]:
        """The statuses of all ranks that have not left."""
        found = {}
        with contextlib.suppress(OSError):  # the folder itself may go meanwhile
            for path in sorted(self.folder.glob("rank-*.json")):
                with contextlib.suppress(OSError, ValueError, TypeError):
                    one = RankStatus(**json.loads(path.read_text(encoding="utf-8")))
                    found[one.rank] = one
        return found

    def stacks_of(self, rank: int) -> str:
        """The stack traces that a rank has written."""
        with contextlib.suppress(OSError):
            if text := self._of(rank).with_suffix(".stacks").read_text(encoding="utf-8", errors="replace"):
                return text
        return "none"

    def has_left(self, rank: int) -> bool:
        """Whether a rank has ended without an error."""
        return not self._of(rank).exists()

    def claim(self, mine: Failure) -> Failure:
        """The failure that came first: `mine`, unless another rank was quicker."""
        draft = self._mine.with_suffix(f".draft-{threading.get_ident()}")
        try:
            draft.write_text(json.dumps(asdict(mine)) + "\n", encoding="utf-8")
            if _link_unless_taken(draft, self.folder / FIRST):
                return mine
        except OSError:  # without the file two ranks may report; better than none
            return mine
        finally:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
        end = time.monotonic() + SETTLE_SECONDS
        while (first := self.first()) is None and time.monotonic() < end:
            time.sleep(0.05)
        return first or mine

    def first(self) -> Failure | None:
        """The failure that came first, if there is one."""
        try:
            return Failure(**json.loads((self.folder / FIRST).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _link_unless_taken(draft: Path, name: Path) -> bool:
    """Publish a complete file unless the name is taken: a full disk must not leave an empty file under that name."""
    try:
        os.link(draft, name)
    except FileExistsError:
        return draft.stat().st_nlink > 1  # NFS may answer this although the link was made
    except OSError:  # no hard links here: two ranks at the same moment may both succeed
        if name.exists():
            return False
        draft.replace(name)
    return True
