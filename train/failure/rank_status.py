"""RUN/ranks: where each rank stands, in a small file of its own, and which of them failed first.

Until the run has begun it is RUN/.ranks, so that a start that fails leaves what an earlier one had to say.

Files, since they reach every node without a collective, which is just what hangs when these are needed.
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

from train.failure.heartbeat import PULSE
from train.failure.process import started

FOLDER = "ranks"
STARTING = ".ranks"
FIRST = "first-failure.json"
SETTLE_SECONDS = 2.0  # for a file that was just made to become readable


@dataclass(frozen=True)
class Sign:
    """What a rank last said. started: see `process.started`. The middle is its `train.failure.heartbeat.Pulse`.

    at: once the run hangs, the place in our code where its main thread is. waits: whether that is for other ranks.
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
    """Why the run ends. hang: found out by rank `rank`, which may not be the one to blame."""

    rank: int
    exit_code: int
    message: str
    hang: bool = False


def sign(rank: int, at: str = "", waits: bool = False) -> Sign:
    """What this process has to say now."""
    pid, pulse = os.getpid(), PULSE
    began = started(pid)
    return Sign(
        rank, socket.gethostname(), pid, began, pulse.step, pulse.phase, pulse.place, pulse.beats, pulse.slow, at, waits
    )


class Signs:
    """The folder, as seen by one rank. A disk that cannot be written makes signs old, and is never an error here."""

    def __init__(self, run_folder: Path, rank: int) -> None:
        self.folder = run_folder / STARTING
        self._rank = rank

    @property
    def _first(self) -> Path:
        return self.folder / FIRST

    @property
    def _mine(self) -> Path:
        return self._of(self._rank)

    def _of(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"

    def begin(self) -> None:
        """The run has begun: the first rank gives the folder its name, after which the others call this too."""
        final = self.folder.with_name(FOLDER)
        if self._rank == 0:
            shutil.rmtree(final, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.rename(final)
        self.folder = final

    @cached_property
    def _own_stacks(self) -> TextIO | None:
        """Kept open for a thread that cannot open one."""
        try:
            return self._mine.with_suffix(".stacks").open("a", encoding="utf-8")
        except OSError:
            return None

    @property
    def stacks(self) -> TextIO:
        """Where this rank's stacks are written, if ever."""
        return self._own_stacks or sys.__stderr__ or sys.stderr

    def show_stacks(self) -> None:
        """Write the stacks of all threads of this process."""
        with contextlib.suppress(OSError, ValueError):  # also where the error output is no file
            if self._own_stacks:
                self._own_stacks.truncate(0)
            faulthandler.dump_traceback(self.stacks, all_threads=True)

    def clear(self) -> None:
        """Remove what an earlier life of the run left."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.mkdir()

    def write(self, sign: Sign) -> None:
        """Replace this rank's sign in one go: others read it at any time, and must not find it half written."""
        fresh = self._mine.with_suffix(".new")
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps(asdict(sign)) + "\n", encoding="utf-8")
            fresh.replace(self._mine)

    def withdraw(self) -> None:
        """This rank leaves in peace."""
        with contextlib.suppress(OSError):
            self._mine.unlink()
            self._mine.with_suffix(".stacks").unlink(missing_ok=True)
            self.folder.rmdir()  # by the last one

    def withdraw_all(self) -> None:
        """This rank leaves a run that has not begun; the last one leaves nothing, not even an empty run folder."""
        self.withdraw()
        with contextlib.suppress(OSError):
            if not self.read():
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.parent.rmdir()

    def read(self) -> Mapping[int, Sign]:
        """The signs of all ranks that have not left."""
        found = {}
        with contextlib.suppress(OSError):  # the folder itself may go meanwhile
            for path in sorted(self.folder.glob("rank-*.json")):
                with contextlib.suppress(OSError, ValueError, TypeError):
                    one = Sign(**json.loads(path.read_text(encoding="utf-8")))
                    found[one.rank] = one
        return found

    def stacks_of(self, rank: int) -> str:
        """The stacks that a rank has shown."""
        with contextlib.suppress(OSError):
            if text := self._of(rank).with_suffix(".stacks").read_text(encoding="utf-8", errors="replace"):
                return text
        return "none"

    def has_left(self, rank: int) -> bool:
        """Whether a rank withdrew its sign."""
        return not self._of(rank).exists()

    def claim(self, mine: Failure) -> Failure:
        """The failure that came first: `mine`, unless another rank was quicker."""
        draft = self._mine.with_suffix(f".draft-{threading.get_ident()}")
        try:
            draft.write_text(json.dumps(asdict(mine)) + "\n", encoding="utf-8")
            if _give_name(draft, self._first):
                return mine
        except OSError:  # nobody can be told, so it is said twice rather than never
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
            return Failure(**json.loads(self._first.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def _give_name(draft: Path, name: Path) -> bool:
    """Publish a file that is whole, unless the name is taken: a full disk must not leave it taken by an empty file."""
    try:
        os.link(draft, name)
    except FileExistsError:
        return draft.stat().st_nlink > 1  # a network file system may say so after it has done it
    except OSError:  # no links here: two that come at the same moment may both succeed
        if name.exists():
            return False
        draft.replace(name)
    return True
