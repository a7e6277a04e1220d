"""Saves and resumes a run: joins the loop's progress, the sharded state and the commit protocol."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from train.checkpoint import commit, folders, manifest
from train.checkpoint.compatibility import CONFIG_OF, Origin
from train.checkpoint.host_copy import HostCopy
from train.checkpoint.state import bytes_to_save, load_state, state_writer
from train.config import Config
from train.engine.loop import Progress
from train.engine.runtime import Runtime
from train.errors import EndedWithError, NoCheckpointError
from train.failure.background import Background, GlooGroup
from train.failure.heartbeat import HEARTBEAT
from train.failure.report_error import report_error
from train.protocols import Group, Objective, Recorder, Tuning
from zerotune.common.errors import CannotWriteError, UserError

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run. All methods except `failed` are collectives.

    Leaving the context finishes a checkpoint in progress, also after an error.
    """

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        objective: Objective,
        model: nn.Module,
        optimizer: Any,
        tuning: Tuning,
        recorder: Recorder,
        require_folder: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.runtime, self.objective = config, runtime, objective
        self.model, self.optimizer, self.tuning = model, optimizer, tuning
        self.folder = Path(config.run.folder) / "checkpoints"
        self.require_folder = require_folder  # raises if the run folder was removed; only rank 0 checks
        self.extended: list[str] = []  # changes of the run's end that `resume` found
        metadata = objective.metadata
        digests = {
            "chat template": metadata["template_hash"],
            "data": metadata["data_digest"],
            "base model": metadata["model"]["digest"],
            CONFIG_OF + "the base model": metadata["model"]["config_digest"],
            **metadata.get("digests", {}),
        }
        self.origin = Origin.of(config, runtime.kind, runtime.count, digests)
        self.background, self.copy = Background(), HostCopy()
        self.recorder = recorder
        self.group = runtime.second_group() if config.checkpoint.asynchronous else None

    def save(self, progress: Progress) -> None:
        """Commit a checkpoint, then remove old ones; in the background, if possible, while training continues.

        First waits for the previous checkpoint, and raises its error.
        """
        self.background.wait()
        self._require_folder()
        progress.objective = dict(self.objective.state())
        answers = self.recorder.files(self.model)
        mine = bytes_to_save(self.runtime.accelerator, self.model, self.optimizer)
        sizes = commit.gather(self.runtime, float(mine))
        finish = partial(
            self._commit,
            step=progress.step,
            state=dataclasses.asdict(progress),
            expected_bytes=int(sum(sizes)),
            best=progress.best_step if self.config.checkpoint.keep_best else None,
        )
        continues = progress.step < self.objective.plan.total_steps
        if self.group is not None and continues and self.copy.fits(sizes, self.runtime):
            self.background.start(partial(finish, self._writer_of_copy(answers, self.group), self.group))
        else:
            finish(lambda folder: self._writer(answers)(folder), self.runtime)

    def failed(self) -> bool:
        """Whether writing a checkpoint failed on this rank: the run should stop; `wait` raises the error."""
        return self.background.failed()

    def wait(self) -> None:
        """Wait until the last checkpoint is committed. Raises its error."""
        self.background.wait()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and HEARTBEAT.writing:
            if isinstance(error, Exception):
                report_error(error)
            log.warning("finishing the checkpoint in progress before this process ends")
            HEARTBEAT.enter("saving", slow=True)
        try:
            self.background.wait()
        except Exception as failure:
            if error is None:
                raise
            log.warning("the checkpoint in progress was not written: %s", failure)
        finally:
            self.background.close()

    def _require_folder(self) -> None:
        """Raise on all ranks if the run folder was removed: a save would create it again with nothing else in it."""
        failure: UserError | None = None
        try:
            self.require_folder()
        except UserError as error:
            failure = error
        if self.runtime.sum([float(failure is not None)])[0]:
            raise failure or EndedWithError("ended because the run folder was removed", CannotWriteError.exit_code)

    def _commit(
        self,
        write: Callable[[Path], None],
        ranks: Group,
        step: int,
        state: Mapping[str, Any],
        expected_bytes: int,
        best: int | None,
    ) -> None:
        commit.commit(self.folder, step, write, state, self.origin, ranks, expected_bytes)
        folders.prune(self.folder, self.config.checkpoint.keep_last, best, ranks)

    def _writer(
        self, answers: Mapping[str, bytes], copied: HostCopy | None = None, group: GlooGroup | None = None
    ) -> Callable[[Path], None]:
        """A function that writes this rank's files; with `copied`, the state of now, whenever it is called."""
        process_group = group.process_group if group else None
        write_state = state_writer(self.runtime.accelerator, self.model, self.optimizer, copied, process_group)
        description = {**answers, **self._description()} if self.runtime.main else None

        def write(folder: Path) -> None:
            write_state(folder)
            if description is not None:
                (folder / "tuning").mkdir()
                for name, content in description.items():
                    (folder / "tuning" / name).write_bytes(content)

        return write

    def _writer_of_copy(self, answers: Mapping[str, bytes], group: GlooGroup) -> Callable[[Path], None]:
        """`_writer` of a copy. An error of this rank is raised when writing, where all ranks learn of it."""
        try:
            return self._writer(answers, self.copy, group)
        except Exception as error:
            failure = error

        def write(folder: Path) -> None:
            raise failure

        return write

    def _description(self) -> dict[str, bytes]:
        """Small files, by name, that the merge needs besides the weights."""
        with tempfile.TemporaryDirectory() as name:
            self.tuning.save({}, self.runtime.unwrap(self.model), Path(name))
            return {path.name: path.read_bytes() for path in Path(name).iterdir()}

    def resume(self) -> Progress:
        """Load the newest valid checkpoint; without checkpoints, start from the beginning.

        Raises NoCheckpointError if none verifies or run.resume requires one, UserError if run.resume forbids one.
        """
        option = self.config.run.resume
        found = self.runtime.sum([float(self.runtime.main and bool(commit.steps(self.folder)))])[0]
        if option == "never" and found:
            raise UserError(
                f"run.resume: never, but {self.folder} has checkpoints; "
                "set run.folder to a new folder, or run.resume to auto"
            )
        newest = folders.newest(self.folder, self.runtime, self.origin, self.config.checkpoint.verify)
        if newest is None:
            if option == "must":
                raise NoCheckpointError(f"run.resume: must, but {self.folder} has no checkpoint")
            self.recorder.begin(self.model)
            return Progress()
        with self._loading(newest):
            self.recorder.resume(newest)
            load_state(self.runtime.accelerator, self.model, self.optimizer, newest)
            progress = Progress(**commit.read_state(newest))
            self.objective.resume(progress.objective)
        self._extend(progress, self.origin.changed(manifest.read(newest)))
        if self.runtime.main:
            log.info("resumed from %s (step %d)", newest, progress.step)
        return progress

    @contextlib.contextmanager
    def _loading(self, folder: Path) -> Iterator[None]:
        """Name the folder in errors: a checkpoint that verifies may still be damaged (with checkpoint.verify: size)."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if self.runtime.count > 1 and isinstance(error, RuntimeError):  # perhaps another rank's failure
                raise
            raise NoCheckpointError(
                f"{folder}: it verifies (checkpoint.verify: {self.config.checkpoint.verify}), but cannot be loaded "
                f"({type(error).__name__}: {error}). Move it elsewhere to resume from the previous one"
            ) from error

    def _extend(self, progress: Progress, changed: Mapping[str, str]) -> None:
        """Accept the new end of the run. Nothing else changes: the plan already has the new end."""
        if not changed:
            return
        self.extended = list(changed.values())
        total = self.objective.plan.total_steps
        if total <= progress.step:
            raise UserError(
                f"run.extend: the new end, step {total}, is not after step {progress.step}, which the run has reached: "
                "raise those of duration.max_steps, duration.max_epochs and duration.max_tokens that are set"
            )
        progress.validations_without_better = 0  # otherwise a run that stopped early would stop again at once
        if self.runtime.main:
            log.info("extended after step %d, now to step %d: %s", progress.step, total, "; ".join(changed.values()))
