"""A study folder: its space, its recipe, Optuna's journal, and a folder for each trial. Several processes share it.

space.yaml     the space as it was given
recipe.yaml    the base recipe, resolved
journal.log    Optuna's journal: values, validations and results of all trials
trials/0007    the run folder of a trial
claims/0007    locked by the process that runs the trial
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from train.config import Config
from train.recipe import load
from train.search.space import Label, Space
from zerotune.common.errors import UserError
from zerotune.common.files import cannot_write, write_atomically
from zerotune.common.yaml_lines import dump_yaml, read_yaml

BEAT_SECONDS = 10.0
STALE_SECONDS = 180.0  # without a heartbeat from another host; the locks of this host are reliable
NAME = "search"

State = Literal["running", "paused", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class Record:
    """One trial as the journal has it.

    values: of the space's parameters. rungs: (step, best value so far) at each rung that it has reached. target: the
    rung that it may train to. validations: step -> value. steps, seconds: trained so far. reason: of its end.
    repeated: the earlier trial that its first draw was again. launch: the launcher's options that it ended with.
    """

    number: int
    state: State
    values: Mapping[str, Label]
    target: int
    rungs: Sequence[tuple[int, float]]
    validations: Mapping[int, float]
    value: float | None
    steps: int
    seconds: float
    reason: str
    repeated: int | None = None
    launch: Sequence[str] = ()


class Study:
    """The journal of a study folder. Methods that change it take its lock, unless the caller holds it."""

    def __init__(self, folder: Path, space: Space, lower_is_better: bool | None = None) -> None:
        """lower_is_better: needed where the study is new."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space = folder, space
        self._held = False
        self._journal = folder / "journal.log"
        with self.locked():
            _repair(self._journal)
            backend = optuna.storages.journal.JournalFileBackend(str(self._journal), lock_obj=_NoLock())
            self._storage = optuna.storages.JournalStorage(backend)
            if lower_is_better is not None:
                optuna.create_study(
                    storage=self._storage, study_name=NAME, load_if_exists=True,
                    direction="minimize" if lower_is_better else "maximize",
                )  # fmt: skip
            self.optuna = optuna.load_study(study_name=NAME, storage=self._storage)
        self.sign = 1 if self.optuna.direction == optuna.study.StudyDirection.MINIMIZE else -1
        self._id = self._storage.get_study_id_from_name(NAME)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all other processes from reading and changing the study while the block runs."""
        if self._held:
            yield
            return
        with locked_file(self.folder / ".lock"):
            self._held = True
            _repair(self._journal)
            try:
                yield
            finally:
                self._held = False

    def records(self) -> list[Record]:
        """All trials so far."""
        with self.locked():
            return [_record(trial) for trial in self.optuna.get_trials(deepcopy=False)]

    def add(self, values: Mapping[str, Label], distributions: Mapping[str, Any], **facts: Any) -> int:
        """A new running trial; its number. One line of the journal: a kill leaves all of it or nothing."""
        import optuna

        with self.locked():
            number = len(self.optuna.get_trials(deepcopy=False))
            running = optuna.trial.TrialState.RUNNING
            params, made = dict(values), dict(distributions)
            trial = optuna.create_trial(state=running, params=params, distributions=made, user_attrs=facts)
            self.optuna.add_trial(trial)
        return number

    def note(self, number: int, **facts: Any) -> None:
        """Record facts of a trial that has not ended: target, rungs, steps, seconds."""
        with self.locked():
            trial = self._trial(number)
            for key, value in facts.items():
                self._storage.set_trial_user_attr(trial, key, value)

    def validated(self, number: int, step: int, value: float) -> None:
        """Record a validation of a running trial, unless it is known."""
        with self.locked():
            if step not in self.optuna.get_trials(deepcopy=False)[number].intermediate_values:
                self._storage.set_trial_intermediate_value(self._trial(number), step, value)

    def end(self, number: int, state: str, value: float | None, reason: str, **facts: Any) -> None:
        """Record the end of a trial."""
        from optuna.trial import TrialState

        ended = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[state]
        with self.locked():
            self.note(number, reason=reason, **facts)
            values = None if state == "failed" or value is None else [value]
            self._storage.set_trial_state_values(self._trial(number), ended, values)

    def _trial(self, number: int) -> int:
        return int(self._storage.get_trial_id_from_study_id_trial_number(self._id, number))

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"

    def claim(self, number: int) -> Claim | None:
        """The right to run a trial, or None while another process has it."""
        return Claim.take(self._claim_file(number))

    def lost(self) -> tuple[int, OtherHost] | None:
        """A running trial whose worker on another host is silent, but not yet long enough to take it over."""
        for record in self.records():
            other = other_host(self._claim_file(record.number)) if record.state == "running" else None
            if other and 3 * BEAT_SECONDS < other.silent < STALE_SECONDS + 3 * BEAT_SECONDS:
                return record.number, other
        return None

    def _claim_file(self, number: int) -> Path:
        return self.folder / "claims" / f"{number:04d}"


def best(records: Sequence[Record], sign: int) -> Record | None:
    """The best trial that trained to its end; of equal ones the first."""
    known = [r for r in records if r.state == "complete" and r.value is not None]
    return min(known, key=lambda r: (sign * (r.value or 0.0), r.number), default=None)


def _record(trial: Any) -> Record:
    facts = trial.user_attrs
    target, rungs = int(facts.get("target", 0)), [(int(step), float(value)) for step, value in facts.get("rungs", [])]
    states: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    state = states.get(trial.state.name) or ("paused" if len(rungs) > target else "running")
    return Record(
        trial.number, state, trial.params, target, rungs, trial.intermediate_values,
        trial.value if trial.state.name in ("COMPLETE", "PRUNED") else None,
        int(facts.get("steps", 0)), float(facts.get("seconds", 0.0)), str(facts.get("reason", "")),
        facts.get("repeated"), facts.get("launch", ()),
    )  # fmt: skip


class OtherHost(NamedTuple):
    """The host of a worker that has a claim. silent: seconds since its last heartbeat."""

    name: str
    silent: float


def other_host(claim: Path) -> OtherHost | None:
    """Who has a claim, if that is a worker on another host."""
    try:
        name, beat = claim.read_text(encoding="utf-8", errors="replace"), claim.stat().st_mtime
    except FileNotFoundError:
        return None
    return OtherHost(name, time.time() - beat) if name not in ("", socket.gethostname()) else None


class Claim:
    """The right to run one trial: a locked file. The kernel drops the lock when the process ends, however it ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._beaten = descriptor, time.monotonic()

    @classmethod
    def take(cls, path: Path) -> Claim | None:
        """The claim, or None while another process has it, or may still have it on another host."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise _no_locks(path, error) from error
        if (other := other_host(path)) and other.silent < STALE_SECONDS:
            os.close(descriptor)  # not every file system shows locks to other hosts
            return None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, socket.gethostname().encode(), 0)
        return cls(descriptor)

    def beat(self) -> None:
        """The heartbeat: this process is alive. Called often, so most calls do nothing."""
        if time.monotonic() > self._beaten + BEAT_SECONDS:
            self._beaten = time.monotonic()
            os.utime(self._descriptor)

    def release(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Wait for the lock of a file, and hold it while the block runs."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise _no_locks(path, error) from error
        yield
    finally:
        os.close(descriptor)


def _no_locks(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be locked ({error.strerror}): put the study on a file system with locks (--study)"
    )


def _repair(journal: Path) -> None:
    """Cut off a line that a killed process, or a full disk, left incomplete."""
    if not journal.exists():
        return
    with journal.open("r+b") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(size - 1, 0))
        if size and handle.read(1) != b"\n":
            handle.seek(0)
            whole = handle.read().rfind(b"\n") + 1
            handle.truncate(whole)


class _NoLock:
    """In place of the journal's own lock, which would outlive a killed process: every write holds the study's lock."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return


def refuse_another(folder: Path, space: Space, base: Config) -> None:
    """Raise UserError naming what differs if the study folder holds another search."""
    for name, given, read in (
        ("space.yaml", space.located.value, lambda path: read_yaml(path).value),
        ("recipe.yaml", dataclasses.asdict(base), lambda path: dataclasses.asdict(load(path))),
    ):
        if (folder / name).exists() and read(folder / name) != given:
            raise UserError(
                f"{folder} holds another search: its {name} differs from what was given. Give the same recipe, space "
                "and options to continue it, or another folder: --study FOLDER"
            )


def prepare(folder: Path, space: Space, base: Config) -> None:
    """Make the study folder, unless it is there."""
    for name, given in (("space.yaml", space.located.value), ("recipe.yaml", dataclasses.asdict(base))):
        if not (folder / name).exists():
            write_atomically(folder / name, dump_yaml(given))
