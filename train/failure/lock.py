"""Allows one run per run folder.

The lock is a POSIX record lock on `RUN/.lock`. The kernel releases it when the process ends; no child inherits it.
The file contains the holder, for messages, and for file systems whose locks are not visible on other hosts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from train.failure.process import ended, started
from train.protocols import Ranks
from zerotune.common.errors import CannotWriteError, UserError

FILE = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
NAME_SECONDS = 2.0  # the holder writes its name right after it has the lock
LOST_NODE_SECONDS = 180.0  # a file server keeps the locks of a lost host for the time of its lease, about 90 s
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

log = logging.getLogger(__name__)


class Hold:
    """A locked run folder. begun: set once the run changes it; otherwise the folder is left unchanged."""

    def __init__(self, lock: _Lock | None) -> None:
        self._lock = lock
        self.begun = False

    def removed(self) -> bool:
        """Whether the folder was removed or renamed; only the rank that holds the lock knows."""
        return self._lock is not None and not self._lock.is_in_place()


@contextlib.contextmanager
def hold(run_folder: Path, ranks: Ranks | None = None) -> Iterator[Hold]:
    """Keep other runs out of `run_folder` (created if missing) while the block runs.

    With `ranks`, the first rank takes the lock, and all ranks enter or raise together. Raises UserError with host and
    process of the holder. A lock of a process that has ended is taken over, with a warning.
    """
    lock: _Lock | None = None
    failure: UserError | None = None
    if ranks is None or ranks.index == 0:
        try:
            lock = _Lock(run_folder)
        except UserError as error:
            failure = error
    if ranks is not None and ranks.sum([float(failure is not None)])[0] and failure is None:
        failure = UserError(f"{run_folder} is in use; see the message of rank 0")
    if failure is not None:
        raise failure
    held = Hold(lock)
    try:
        yield held
    finally:
        if lock is not None:
            lock.release(held.begun)


class _Lock:
    def __init__(self, run_folder: Path) -> None:
        self.path = run_folder / FILE
        self._made_folder, self._made_file = not run_folder.exists(), not self.path.exists()
        self._open()
        try:
            self._take()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CannotWriteError(f"Cannot write {self.path}: {error.strerror}") from error

    def is_in_place(self) -> bool:
        """Whether the file that is locked is still the one in the run folder."""
        try:
            found, ours = self.path.stat(), os.fstat(self._descriptor)
        except FileNotFoundError:
            return False
        except OSError:  # the file server does not answer: assume that the folder exists
            return True
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def _take(self) -> None:
        began, waiting = time.monotonic(), False
        while not self._locked() or not self.is_in_place():
            if not self.is_in_place():  # the holder has just removed it
                os.close(self._descriptor)
                self._open()
                continue
            holder, waited = self._holder(), time.monotonic() - began
            if holder is None and waited < NAME_SECONDS:
                time.sleep(0.05)
                continue
            if holder is None or not _earlier_start_of_this_job(holder) or waited >= LOST_NODE_SECONDS:
                raise self._refusal(holder, "")
            if not waiting:
                log.warning("%s: waiting until the lock of this job's last start expires", self.path)
            waiting = True
            time.sleep(1)
        self._replace(self._holder())
        content = json.dumps(_myself()).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)

    def _locked(self) -> bool:
        """Whether we have the lock now, or the file system does not support locks."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                return False
            if error.errno not in UNSUPPORTED:
                raise CannotWriteError(f"Cannot lock {self.path}: {error.strerror}") from error
            log.warning(
                "%s: this file system has no locks; do not start two runs in this folder at the same time", self.path
            )
        return True

    def _replace(self, holder: Mapping[str, Any] | None) -> None:
        """Take over from a holder that did not release. Raises UserError if it may still be alive."""
        if holder is None:
            return
        if holder["host"] != socket.gethostname() and not _earlier_start_of_this_job(holder):
            raise self._refusal(holder, f". If that run has ended, remove {self.path} and start again")
        if holder["host"] == socket.gethostname() and _alive(holder):
            raise self._refusal(holder, "")
        log.warning("%s: taken over from process %s on %s, which has ended", self.path, holder["pid"], holder["host"])

    def _refusal(self, holder: Mapping[str, Any] | None, more: str) -> UserError:
        who = f"process {holder['pid']} on host {holder['host']}" if holder else "a run that is just starting"
        return UserError(
            f"{self.path.parent} is in use by {who}; two runs cannot share a run folder. Stop that run, or set another "
            f"run.folder{more}"
        )

    def _holder(self) -> Mapping[str, Any] | None:
        try:
            holder = json.loads(os.pread(self._descriptor, 4096, 0))
            return {"host": str(holder["host"]), "pid": int(holder["pid"]), **holder}
        except (ValueError, KeyError, TypeError):
            return None

    def release(self, begun: bool) -> None:
        """Leave an empty file; if the run had not begun, remove what was created for it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            if self._made_file and not begun and self.is_in_place():
                self.path.unlink()
            if self._made_folder and not begun:
                self.path.parent.rmdir()  # if nothing else is in it
        os.close(self._descriptor)


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
    }


def _earlier_start_of_this_job(holder: Mapping[str, Any]) -> bool:
    """Whether the holder is this batch job before it was requeued; it cannot be running any more."""
    me = _myself()
    return (
        me["job"] is not None and holder.get("job") == me["job"] and int(holder.get("restarts") or 0) < me["restarts"]
    )


def _alive(holder: Mapping[str, Any]) -> bool:
    """Whether that process of this host is alive; its start time distinguishes it from a later one with its pid."""
    if holder.get("started") is not None:
        return not ended(holder["pid"], holder["started"])
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
