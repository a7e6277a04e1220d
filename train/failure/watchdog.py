"""How a run of many ranks ends when one of them does: soon, all together, and with the first error said first.

Each rank has a thread that looks around once a second. It ends this process where another rank failed, or died without
a word, or where no rank gets on any more; a main thread that waits in a collective would not notice for hours.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from train.errors import EndedWithError
from train.failure.hang import Stillness, judge, whereabouts
from train.failure.heartbeat import PULSE
from train.failure.process import ended
from train.failure.rank_status import Failure, Sign, Signs, sign
from train.failure.stop import STATUS_FILE, Interrupted, Status
from train.protocols import Ranks
from zerotune.common.errors import CannotWriteError, UserError
from zerotune.common.masking import mask, printable

HANG = 70  # exit code
TICK_SECONDS = 1.0
GRACE_SECONDS = 3.0  # for the main thread to end by itself, and for ranks to show their stacks
PATIENCE_SECONDS = 20.0  # for the rank that failed first to be gone: once any is, the launcher ends all others
WRITING_SECONDS = 600.0  # for a checkpoint under way to be finished although the run has failed

log = logging.getLogger(__name__)


class Watchdog:
    """Watches this rank and the others while its block runs. Entered by all ranks together."""

    def __init__(
        self, run_folder: Path, ranks: Ranks, hang_seconds: float | None, status: Status | None = None
    ) -> None:
        self._run_folder, self._ranks, self._rank = run_folder, ranks, ranks.index
        self._status = status or Status(run_folder)
        self._signs = Signs(run_folder, ranks.index)
        self._stillness = None if hang_seconds is None else Stillness(ranks.index, hang_seconds)
        self._peers: dict[int, Sign] = {}
        self._said: Sign | None = None
        self._doomed_seconds = self._writing_seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._rank == 0:
            self._signs.clear()
        self._ranks.barrier()
        me = sign(self._rank)
        self._say(me)
        self._ranks.barrier()
        # Only what can be seen now can be missed later: containers may share a host's name and not its processes.
        self._peers = {
            rank: peer
            for rank, peer in self._signs.read().items()
            if rank != self._rank and peer.host == me.host and not _ended(peer)
        }
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if not self._status.begun:
            self._signs.withdraw_all()
        elif kind is None or issubclass(kind, Interrupted):
            self._signs.withdraw()

    def begin(self, step: int) -> None:
        """The run has begun, at `step`: from here on it writes into its folder. Called by all ranks together."""
        PULSE.step = step
        self._ranks.barrier()
        if self._rank == 0:
            self._signs.begin()
        self._ranks.barrier()
        if self._rank:
            self._signs.begin()
            self._status.begun = True
        else:
            self._status.begin(step)
        self._said = None

    @contextlib.contextmanager
    def first_error(self) -> Iterator[None]:
        """An error inside goes into status.json if it is the first of the run; else EndedWithError takes its place."""
        try:
            yield
        except Interrupted:
            raise
        except BaseException as error:
            if _second_hand(error):
                self._look_for_another()
            code = error.exit_code if isinstance(error, UserError) else 1
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            mine = Failure(self._rank, code, mask(text))
            first = self._signs.claim(mine)
            if first.hang:
                self._thread.join()  # it ends the process
            if first is not mine:
                self._let_go_first(first.rank)
                raise self._ended_with(first) from None
            self._record(mine)
            raise

    def _look_for_another(self) -> None:
        """Wait a little for a rank that says, or can be seen to be gone, what is behind an error here."""
        end = time.monotonic() + GRACE_SECONDS
        while self._ranks.count > 1 and self._signs.first() is None and time.monotonic() < end:
            if lost := self._lost():
                self._report(lost)
            time.sleep(0.05)

    def _watch(self) -> None:
        before, complaint = time.monotonic(), ""
        while not self._over.wait(TICK_SECONDS):
            now = time.monotonic()
            elapsed, before = min(now - before, 2 * TICK_SECONDS), now  # time for which all was halted does not count
            try:
                self._look_around(elapsed)
            except Exception as error:  # this thread must not die: nothing else ends a hang
                if complaint != str(error):
                    complaint = str(error)
                    log.warning("the watchdog: %s: %s", type(error).__name__, complaint)

    def _look_around(self, elapsed: float) -> None:
        self._say(sign(self._rank))
        if first := self._signs.first():
            self._follow(first, elapsed)
            return
        if self._rank == 0:
            self._status.move(PULSE.step)
        if lost := self._lost():
            self._report(lost)
        elif self._stillness:
            if self._stillness.too_long(elapsed, self._signs.read):
                self._accuse(self._stillness.seconds)
            # Written by a thread that does not need Python's lock, which a main thread that hangs may hold. It must
            # not come to that while Python runs: reading stacks that change, it would crash now and then (SIGSEGV).
            starved = max(0.75 * self._stillness.limit_seconds, 3 * TICK_SECONDS)
            faulthandler.dump_traceback_later(starved, file=self._signs.stacks)

    def _say(self, now: Sign) -> None:
        if now != self._said:
            self._signs.write(now)
            self._said = now

    def _follow(self, first: Failure, elapsed: float) -> None:
        """End with the rank that failed first, as soon as the main thread has had time to do so."""
        faulthandler.cancel_dump_traceback_later()
        if self._rank == 0 and self._status.is_running and not first.hang:  # perhaps over what that rank has written
            self._record(first)
        if first.hang:
            with _ending(HANG):
                self._testify()
                time.sleep(GRACE_SECONDS)
        writes = PULSE.writing and not self._is_gone(first.rank)
        if writes:
            self._writing_seconds += elapsed
        else:
            self._doomed_seconds += elapsed
        most = PATIENCE_SECONDS if self._is_seen(first.rank) else GRACE_SECONDS
        over = self._writing_seconds > WRITING_SECONDS or self._doomed_seconds > most
        if over and (writes or first.rank != self._rank):
            with _ending(first.exit_code):
                self._print(str(self._ended_with(first)))
                if not self._status.begun:
                    self._signs.withdraw_all()

    def _let_go_first(self, rank: int) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while self._is_seen(rank) and (PULSE.writing or time.monotonic() < end):
            time.sleep(0.05)

    def _is_seen(self, rank: int) -> bool:
        """Whether the process of a rank is on this host and lives."""
        peer = self._peers.get(rank)
        return peer is not None and not _ended(peer)

    def _is_gone(self, rank: int) -> bool:
        """Whether the process of a rank was on this host and is no more."""
        peer = self._peers.get(rank)
        return peer is not None and _ended(peer)

    def _lost(self) -> Sign | None:
        """A rank of this host that is gone and did not say goodbye."""
        for rank, peer in list(self._peers.items()):
            if _ended(peer):
                if not self._signs.has_left(rank):
                    return self._signs.read().get(rank, peer)
                self._peers.pop(rank, None)  # the main thread may look as well
        return None

    def _report(self, lost: Sign) -> None:
        """Speak for a rank that no longer can."""
        text = (
            f"rank {lost.rank} (process {lost.pid} on {lost.host}) was killed; last seen after step {lost.step}, in "
            f"`{lost.phase}`. If nobody did it, the kernel may have, for want of memory: `dmesg` or the cluster's log "
            "tells. The same command continues from the newest checkpoint"
        )
        mine = Failure(lost.rank, 1, text)
        if self._signs.claim(mine) is mine:
            self._record(mine)
            self._print(text)

    def _testify(self) -> None:
        """Show this rank's stacks and where its main thread is."""
        faulthandler.cancel_dump_traceback_later()
        self._signs.show_stacks()
        self._say(sign(self._rank, *whereabouts()))

    def _accuse(self, still_seconds: float) -> None:
        """Tell all ranks that the run hangs, hear them, say who is to blame, and end."""
        mine = Failure(self._rank, HANG, "the run hangs", hang=True)
        if self._signs.claim(mine) is not mine:
            return
        with _ending(HANG):
            self._testify()
            end = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < end and not all(one.at for one in self._signs.read().values()):
                time.sleep(0.1)
            signs = {self._rank: sign(self._rank, *whereabouts()), **self._signs.read()}  # never none
            stuck, verdict = judge(signs, still_seconds)
            self._record(Failure(stuck[0], HANG, verdict))
            for rank in signs:
                self._print(f"stacks of rank {rank}:\n{self._signs.stacks_of(rank)}")
            self._print(verdict)

    def _record(self, failure: Failure) -> None:
        with contextlib.suppress(CannotWriteError):  # the failure itself is what counts
            self._status.write("failed", PULSE.step, failure.message, failure.exit_code, rank=failure.rank)

    def _ended_with(self, first: Failure) -> EndedWithError:
        where = f"{self._run_folder / STATUS_FILE} says why" if self._status.begun else "its message says why"
        return EndedWithError(f"ended because rank {first.rank} failed first; {where}", first.exit_code)

    def orphaned(self, why: str) -> None:
        """In another thread: the launcher of this rank is gone, and with it the run. Ends the process."""
        mine = Failure(self._rank, 1, f"{why}. The same command continues from the newest checkpoint")
        with _ending(1):
            if self._signs.claim(mine) is mine:
                self._record(mine)
                self._print(mine.message)
            if not self._status.begun:
                self._signs.withdraw_all()

    def _print(self, text: str) -> None:
        prefix = f"[rank {self._rank}] " if self._rank else ""
        sys.stderr.write(printable(f"{prefix}{text.rstrip()}\n"))
        sys.stderr.flush()


@contextlib.contextmanager
def _ending(code: int) -> Iterator[None]:
    """After what is inside, whatever becomes of it, this process ends with `code`."""
    try:
        yield
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _second_hand(error: BaseException) -> bool:
    """Whether another rank's failure may be behind it: collectives break so, and a save given up has no cause here."""
    return isinstance(error, RuntimeError) or (isinstance(error, CannotWriteError) and error.__cause__ is None)


def _ended(peer: Sign) -> bool:
    return peer.started is None or ended(peer.pid, peer.started)
