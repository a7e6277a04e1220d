"""One trial: an ordinary training process in an ordinary run folder, watched through its files."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.config import Config
from train.failure.lock import FILE as LOCK_FILE
from train.failure.stop import STATUS_FILE, STOP_FILE, read_status
from train.recipe import to_yaml
from train.search.study import STALE_SECONDS
from zerotune.common.files import json_object, write_atomically
from zerotune.common.mask_secrets import printable

LOG = "output.log"
LONGEST_MESSAGE = 400  # characters
Validations = list[tuple[int, float]]


@dataclass(frozen=True)
class Starter:
    """How trials are started: the words of `zerotune train`, and the environment.

    words: before the recipe. launch: options of the launcher, and others that only the command line takes.
    """

    launch: Sequence[str] = ()
    words: Sequence[str] = (sys.executable, "-m", "train.cli", "train")
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, folder: Path, share: float) -> subprocess.Popen[bytes]:
        """The process that trains the recipe of a trial, up to a share of its steps."""
        command = [*self.words, *arguments(folder, share), *self.launch]
        with (folder / LOG).open("ab") as log:
            # In a group of its own: Ctrl-C reaches it through the search, once.
            return subprocess.Popen(
                command, env={**os.environ, **self.environment}, process_group=0,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip


def arguments(folder: Path, share: float) -> list[str]:
    """What a training process is given: the recipe of the trial, and a share of its steps to stop at."""
    return ["--config", str(folder / "recipe.yaml"), *(["--run.stop_at_share", repr(share)] if share < 1 else [])]


@dataclass(frozen=True)
class Ended:
    """How a start of a trial ended.

    kind: rung (it stopped at its share), complete, pruned, failed, or stopped (the search stops; it will be resumed).
    """

    kind: str
    reason: str = ""


class Trial:
    """A trial in the hands of this process: a run that it starts, or that a killed process has left behind."""

    def __init__(self, folder: Path, metric: str, share: float, starter: Starter) -> None:
        """share: of the run's steps that it may train."""
        self.folder, self.share = folder, share
        self._starter, self._curve = starter, _Curve(folder / "metrics.jsonl", metric)
        self._process: subprocess.Popen[bytes] | None = None
        self.pruned = ""  # why
        self.pruned_at: Validations = []  # the validations that this was decided on
        self.stopping = False
        self._is_last_try = False  # after a kill before any step
        self._began = time.monotonic()
        self._step_before = self.step
        self._start_again = not (self._is_left_running() or self._has_arrived())

    @property
    def step(self) -> int:
        """The last step that the run has reported; one that was killed may have reported no more than a validation."""
        steps = [step for step, _ in self.validations()[-1:]]
        return max([int(read_status(self.folder).get("step") or 0), *steps])

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def validations(self) -> Validations:
        """(step, value) of every finite validation so far, without the one before training."""
        return [(step, value) for step, value in self._curve.read() if step > 0]

    @property
    def total_steps(self) -> int | None:
        """Of the whole run; None until it has read its data."""
        return json_object(self.folder / "run.json").get("total_steps")

    def upto_share(self) -> Validations:
        """The validations up to the one that the share ends with: a resumed run may have gone beyond it."""
        total = self.total_steps or 0
        found: Validations = []
        for step, value in self.validations():
            found.append((step, value))
            if self.share < 1 and step >= self.share * total - 1e-9:
                break
        return found

    def prune(self, reason: str, found: Validations) -> None:
        """Stop the run; it saves, and could be resumed. found: the validations that this was decided on."""
        self.pruned, self.pruned_at = reason, found
        write_atomically(self.folder / STOP_FILE, "by the search\n")

    def interrupt(self) -> None:
        """Stop the run as Ctrl-C does: it saves, or ends at once where there is nothing to save."""
        self.stopping = True
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # a shell's `&`, which the run inherits
        if self._process is not None and not ignored:
            self._signal(signal.SIGINT)
        elif self._process is not None or self._is_left_running():
            write_atomically(self.folder / STOP_FILE, "by the search\n")

    def kill(self) -> None:
        """End the run without saving."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def poll(self) -> Ended | None:
        """How the run ended, or None while it runs. Starts it where it has to be."""
        if self._start_again:
            self._start_again = False
            (self.folder / STOP_FILE).unlink(missing_ok=True)  # for an earlier process
            if self.pruned or self.stopping:
                return Ended("pruned", self.pruned) if self.pruned else Ended("stopped")
            self._step_before = self.step
            self._process = self._starter.start(self.folder, self.share)
        code = None
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return None
            self._process = None
        if self._is_left_running():  # by a search that was killed
            return None
        return self._ended(code)

    def _ended(self, code: int | None) -> Ended | None:
        """code: of a process that was started here."""
        (self.folder / STOP_FILE).unlink(missing_ok=True)
        status = read_status(self.folder)
        state, reason = status.get("state"), str(status.get("reason") or "")
        if self.pruned:
            return Ended("pruned", self.pruned)
        if state == "finished":
            return Ended("complete", reason)
        if self._has_arrived():
            return Ended("rung")
        if self.stopping:
            return Ended("stopped")
        if code is not None and state == "preempted" and reason == f"{STOP_FILE} file":
            return Ended("pruned", "stopped by its STOP file")
        gets_on = state in ("running", "preempted") and self.step > self._step_before
        if code is None or gets_on or (code < 0 and not self._is_last_try):  # killed, or stopped from outside
            self._start_again, self._is_last_try = True, code is not None and not gets_on
            return None
        return Ended("failed", self._message(code, status))

    def _has_arrived(self) -> bool:
        """Whether the run is over for now: at its share, or finished."""
        status = read_status(self.folder)
        if status.get("state") == "finished":
            return True
        total, found = self.total_steps, self.validations()
        return bool(total and found and self.share < 1 and found[-1][0] >= self.share * total - 1e-9)

    def _is_left_running(self) -> bool:
        """Whether a process has the lock of the run folder. The lock of a lost host is removed."""
        lock = self.folder / LOCK_FILE
        try:
            descriptor = os.open(lock, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        if json_object(lock).get("host") in (None, socket.gethostname()):
            return False
        signs = [self.folder / name for name in (LOCK_FILE, LOG, STATUS_FILE)]
        if time.time() - max(path.stat().st_mtime for path in signs if path.exists()) < STALE_SECONDS:
            return True  # not every file system shows locks to other hosts
        lock.unlink()
        return False

    def _message(self, code: int, status: Mapping[str, Any]) -> str:
        """What the run said about its failure."""
        if status.get("state") == "failed" and status.get("reason"):
            return _short(str(status["reason"]))
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed twice, the second time by {name} after step {self.step} (out of memory?); see {LOG}"
        lines = [line for line in _tail(self.folder / LOG) if line.strip()]
        return _short(lines[-1]) if lines else f"ended with exit code {code}"


def write_recipe(folder: Path, config: Config, settings: Mapping[str, Any]) -> None:
    """The recipe of a trial in its folder. settings: what the search has chosen."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, folder=str(folder)))
    chosen = "".join(f"#   {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings.items())
    write_atomically(folder / "recipe.yaml", f"# A trial of a search, which chose:\n{chosen}{to_yaml(config)}")


class _Curve:
    """A validation metric in a metrics.jsonl that grows, and is written anew when a run resumes."""

    def __init__(self, path: Path, metric: str) -> None:
        self._path, self._name = path, f"validation/{metric}"
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._values: dict[int, float] = {}

    def read(self) -> Validations:
        with contextlib.suppress(OSError), self._path.open("rb") as handle:
            found = os.fstat(handle.fileno())
            if self._file != (found.st_dev, found.st_ino) or found.st_size < self._offset:
                self._file, self._offset, self._values = (found.st_dev, found.st_ino), 0, {}
            handle.seek(self._offset)
            text = handle.read()
            whole = text.rfind(b"\n") + 1
            self._offset += whole
            self._values |= dict(self._points(text[:whole]))
        return sorted(self._values.items())

    def _points(self, lines: bytes) -> Iterator[tuple[int, float]]:
        for line in lines.splitlines():
            if self._name.encode() not in line:
                continue
            with contextlib.suppress(ValueError):
                values = json.loads(line)
                if isinstance(values.get(self._name), int | float):
                    yield int(values["step"]), float(values[self._name])


def _tail(path: Path) -> list[str]:
    with contextlib.suppress(OSError), path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 8192))
        return handle.read().decode(errors="replace").splitlines()
    return []


def _short(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 3] + "..."
