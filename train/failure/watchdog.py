"""Ends all ranks soon after one of them fails, and reports the first error first.

Each rank has a thread that checks the others once a second. It ends this process if another rank failed or was killed,
or if no rank makes progress; a main thread that waits in a collective would not notice for hours.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from train.errors import EndedWithError
from train.failure.hang import StallDetector, find_hanging, main_thread_location
from train.failure.heartbeat import HEARTBEAT
from train.failure.process import ended
from train.failure.rank_status import Failure, RankStatus, RankStatusFolder, current_status
from train.failure.stop import STATUS_FILE, Interrupted, Status
from train.protocols import Ranks
from zerotune.common.errors import CannotWriteError, UserError
from zerotune.common.launcher_watch import write_stderr
from zerotune.common.mask_secrets import mask, printable

HANG = 70  # exit code
TICK_SECONDS = 1.0
GRACE_SECONDS = 3.0  # for the main thread to end by itself, and for ranks to write their stack traces
PATIENCE_SECONDS = 20.0  # for the rank that failed first to exit first: the launcher then ends all others
WRITING_SECONDS = 600.0  # for a checkpoint in progress to be finished although the run has failed

log = logging.getLogger(__name__)


class Watchdog:
    """Watches this rank and the others while its block runs. All ranks enter together."""

    def __init__(
        self, run_folder: Path, ranks: Ranks, hang_seconds: float | None, status: Status | None = None
    ) -> None:
        self._run_folder, self._ranks, self._rank = run_folder, ranks, ranks.index
        self._status = status or Status(run_folder)
        self._statuses = RankStatusFolder(run_folder, ranks.index)
        self._stall = None if hang_seconds is None else StallDetector(ranks.index, hang_seconds)
        self._peers: dict[int, RankStatus] = {}
        self._published: RankStatus | None = None
        self._ending_seconds = self._writing_seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._rank == 0:
            self._statuses.clear()
        self._ranks.barrier()
        me = current_status(self._rank)
        self._publish(me)
        self._ranks.barrier()
        # Watch only processes that are visible now: containers may share a host name but not processes.
        self._peers = {
            rank: peer
            for rank, peer in self._statuses.read().items()
            if rank != self._rank and peer.host == me.host and not _ended(peer)
        }
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if not self._status.begun or kind is None or issubclass(kind, Interrupted):
            self._statuses.leave()

    def begin(self, step: int) -> None:
        """The run has begun, at `step`: from now on it writes into its folder. A collective."""
        HEARTBEAT.step = step
        self._ranks.barrier()
        if self._rank == 0:
            self._statuses.begin()
        self._ranks.barrier()
        if self._rank:
            self._statuses.begin()
            self._status.begun = True
        else:
            self._status.begin(step)
        self._published = None

    @contextlib.contextmanager
    def first_error(self) -> Iterator[None]:
        """Record an error in status.json if it is the first of the run; otherwise raise EndedWithError instead."""
        try:
            yield
        except Interrupted:
            raise
        except BaseException as error:
            if _may_be_consequence(error):
                self._wait_for_cause()
            code = error.exit_code if isinstance(error, UserError) else 1
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            mine = Failure(self._rank, code, mask(text))
            first = self._statuses.claim(mine)
            if first.hang:
                self._thread.join()  # the watchdog thread ends the process
            if first is not mine:
                end = time.monotonic() + PATIENCE_SECONDS
                while self._is_alive(first.rank) and (HEARTBEAT.writing or time.monotonic() < end):
                    time.sleep(0.05)
                raise self._ended_with(first) from None
            self._record(mine)
            raise

    def _wait_for_cause(self) -> None:
        """Wait a little for another rank that failed or was killed and so caused the error here."""
        end = time.monotonic() + GRACE_SECONDS
        while self._ranks.count > 1 and self._statuses.first() is None and time.monotonic() < end:
            if lost := self._lost():
                self._report(lost)
            time.sleep(0.05)

    def _watch(self) -> None:
        before, complaint = time.monotonic(), ""
        while not self._over.wait(TICK_SECONDS):
            now = time.monotonic()
            elapsed, before = min(now - before, 2 * TICK_SECONDS), now  # a suspended process does not count as stalled
            try:
                self._look_around(elapsed)
            except Exception as error:  # this thread must survive: nothing else ends a hang
                if complaint != str(error):
                    complaint = str(error)
                    log.warning("watchdog: %s: %s", type(error).__name__, complaint)

    def _look_around(self, elapsed: float) -> None:
        self._publish(current_status(self._rank))
        if first := self._statuses.first():
            self._end_after(first, elapsed)
            return
        if self._rank == 0:
            self._status.move(HEARTBEAT.step)
        if lost := self._lost():
            self._report(lost)
        elif self._stall:
            if self._stall.is_stalled(elapsed, self._statuses.read):
                self._declare_hang(self._stall.seconds)
            # Written by a C thread that does not need the GIL, which a hanging main thread may hold. It must not fire
            # while Python runs: reading stacks that change crashes now and then (SIGSEGV).
            starved = max(0.75 * self._stall.limit_seconds, 3 * TICK_SECONDS)
            faulthandler.dump_traceback_later(starved, file=self._statuses.stacks)

    def _publish(self, now: RankStatus) -> None:
        if now != self._published:
            self._statuses.write(now)
            self._published = now

    def _end_after(self, first: Failure, elapsed: float) -> None:
        """Another rank failed first: end this process once its main thread has had time to end by itself."""
        faulthandler.cancel_dump_traceback_later()
        if self._rank == 0 and self._status.is_running and not first.hang:  # may overwrite what that rank wrote
            self._record(first)
        if first.hang:
            with _ending(HANG):
                self._publish_stacks()
                time.sleep(GRACE_SECONDS)
        alive = self._is_alive(first.rank)
        writes = HEARTBEAT.writing and alive is not False
        if writes:
            self._writing_seconds += elapsed
        else:
            self._ending_seconds += elapsed
        most = PATIENCE_SECONDS if alive else GRACE_SECONDS
        expired = self._writing_seconds > WRITING_SECONDS or self._ending_seconds > most
        if expired and (writes or first.rank != self._rank):
            with _ending(first.exit_code):
                self._print(str(self._ended_with(first)))
                if not self._status.begun:
                    self._statuses.leave()

    def _is_alive(self, rank: int) -> bool | None:
        """Whether the process of a rank lives; None if it is not visible on this host."""
        peer = self._peers.get(rank)
        return None if peer is None else not _ended(peer)

    def _lost(self) -> RankStatus | None:
        """A rank of this host that was killed: it ended without removing its status."""
        for rank, peer in list(self._peers.items()):
            if _ended(peer):
                if not self._statuses.has_left(rank):
                    return self._statuses.read().get(rank, peer)
                self._peers.pop(rank, None)  # the main thread may check as well
        return None

    def _report(self, lost: RankStatus) -> None:
        """Report a rank that was killed."""
        text = (
            f"rank {lost.rank} (process {lost.pid} on {lost.host}) was killed; last seen after step {lost.step}, in "
            f"`{lost.phase}`. If nobody killed it, it probably ran out of memory: see `dmesg` or the cluster's log. "
            "The same command resumes from the newest checkpoint"
        )
        mine = Failure(lost.rank, 1, text)
        if self._statuses.claim(mine) is mine:
            self._record(mine)
            self._print(text)

    def _publish_stacks(self) -> RankStatus:
        """Write the stack traces of this rank and the location of its main thread. Returns its status."""
        faulthandler.cancel_dump_traceback_later()
        self._statuses.show_stacks()
        now = current_status(self._rank, *main_thread_location())
        self._publish(now)
        return now

    def _declare_hang(self, still_seconds: float) -> None:
        """Announce a hang to all ranks, collect their locations, report the cause, and end the process."""
        mine = Failure(self._rank, HANG, "the run hangs", hang=True)
        if self._statuses.claim(mine) is not mine:
            return
        with _ending(HANG):
            me = self._publish_stacks()
            end = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < end and not all(one.at for one in self._statuses.read().values()):
                time.sleep(0.1)
            statuses = {self._rank: me, **self._statuses.read()}  # never empty
            stuck, verdict = find_hanging(statuses, still_seconds)
            self._record(Failure(stuck[0], HANG, verdict))
            for rank in statuses:
                self._print(f"stacks of rank {rank}:\n{self._statuses.stacks_of(rank)}")
            self._print(verdict)

    def _record(self, failure: Failure) -> None:
        with contextlib.suppress(CannotWriteError):  # the failure matters more than its record
            self._status.write("failed", HEARTBEAT.step, failure.message, failure.exit_code, rank=failure.rank)

    def _ended_with(self, first: Failure) -> EndedWithError:
        where = f"the reason is in {self._run_folder / STATUS_FILE}" if self._status.begun else "see its message"
        return EndedWithError(f"ended because rank {first.rank} failed first; {where}", first.exit_code)

    def launcher_died(self, why: str) -> None:
        """End this process. Called from another thread."""
        mine = Failure(self._rank, 1, f"{why}. The same command resumes from the newest checkpoint")
        with _ending(1):
            if self._statuses.claim(mine) is mine:
                self._record(mine)
                self._print(mine.message)
            if not self._status.begun:
                self._statuses.leave()

    def _print(self, text: str) -> None:
        write_stderr(printable(f"[rank {self._rank}] " * (self._rank > 0) + text.rstrip()))


@contextlib.contextmanager
def _ending(code: int) -> Iterator[None]:
    """End this process with `code` after the block, even if the block fails."""
    try:
        yield
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def _may_be_consequence(error: BaseException) -> bool:
    """Whether another rank may have caused it: a broken collective, or a failed save without a cause on this rank."""
    return isinstance(error, RuntimeError) or (isinstance(error, CannotWriteError) and error.__cause__ is None)


def _ended(peer: RankStatus) -> bool:
    return peer.started is None or ended(peer.pid, peer.started)
