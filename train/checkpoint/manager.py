"""When a run saves and where it takes up again: the loop's progress, the sharded state and the commit protocol put
together.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
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
    """The checkpoints of one run. All methods but `failed` are called by all ranks together.

    As a context, what is under way at its end is still committed, whatever ends the run.
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
        self.require_folder = require_folder  # raises where the run folder is gone; known to the first rank
        self.extended: list[str] = []  # what `resume` found changed with the run's end
        digests = {
            "chat template": objective.metadata["template_hash"],
            "data": objective.metadata["data_digest"],
            "base model": objective.metadata["model"]["digest"],
            CONFIG_OF + "the base model": objective.metadata["model"]["config_digest"],
            **objective.metadata.get("digests", {}),
        }
        self.origin = Origin.of(config, runtime.kind, runtime.count, digests)
        self.background, self.copy = Background(), HostCopy()
        self.recorder = recorder
        self.group = runtime.second_group() if config.checkpoint.asynchronous else None

    def save(self, progress: Progress) -> None:
        """Commit a checkpoint, then remove those that are no longer kept; in the background while training goes on.

        First waits for the one before, and raises what went wrong with it.
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
        goes_on = progress.step < self.objective.plan.total_steps
        if self.group is not None and goes_on and self.copy.fits(sizes, self.runtime):
            self.background.start(partial(finish, self._writer_of_copy(answers, self.group), self.group))
        else:
            finish(lambda folder: self._writer(answers)(folder), self.runtime)

    def failed(self) -> bool:
        """Whether this rank knows that a checkpoint was not written: a reason to stop, where the error is raised."""
        return self.background.failed()

    def wait(self) -> None:
        """Until all is committed. Raises what went wrong."""
        self.background.wait()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and HEARTBEAT.writing:
            if isinstance(error, Exception):
                report_error(error)
            log.warning("the checkpoint under way is finished before this process ends")
            HEARTBEAT.enter("saving", slow=True)
        try:
            self.background.wait()
        except Exception as failure:
            if error is None:
                raise
            log.warning("the checkpoint under way was not written: %s", failure)
        finally:
            self.background.close()

    def _require_folder(self) -> None:
        """All ranks raise where the run folder is gone: a save would make a new one, with nothing else in it."""
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
        """What writes this rank's files; with `copied` those of now, whatever training does meanwhile."""
        met = group.process_group if group else None
        write_state = state_writer(self.runtime.accelerator, self.model, self.optimizer, copied, met)
        description = {**answers, **self._description()} if self.runtime.main else None

        def write(folder: Path) -> None:
            write_state(folder)
            if description is not None:
                (folder / "tuning").mkdir()
                for name, content in description.items():
                    (folder / "tuning" / name).write_bytes(content)

        return write

    def _writer_of_copy(self, answers: Mapping[str, bytes], group: GlooGroup) -> Callable[[Path], None]:
        """The same; what fails on this rank alone is raised where it meets the others."""
        try:
            return self._writer(answers, self.copy, group)
        except Exception as error:
            failure = error

        def write(folder: Path) -> None:
            raise failure

        return write

    def _description(self) -> dict[str, bytes]:
        """What the hand-over needs beside the weights: a few small files, by name."""
        with tempfile.TemporaryDirectory() as name:
            self.tuning.save({}, self.runtime.unwrap(self.model), Path(name))
            return {path.name: path.read_bytes() for path in Path(name).iterdir()}

    def resume(self) -> Progress:
        """Load the newest checkpoint that verifies; a fresh start where there is none.

        Raises NoCheckpointError if one was demanded or none verifies, UserError if there must be none.
        """
        wish = self.config.run.resume
        found = self.runtime.sum([float(self.runtime.main and bool(commit.steps(self.folder)))])[0]
        if wish == "never" and found:
            raise UserError(
                f"run.resume: never, but {self.folder} holds checkpoints; "
                "set run.folder to a new folder, or run.resume to auto"
            )
        newest = folders.newest(self.folder, self.runtime, self.origin, self.config.checkpoint.verify)
        if newest is None:
            if wish == "must":
                raise NoCheckpointError(f"run.resume: must, but {self.folder} holds no checkpoint")
            self.recorder.begin(self.model)
            return Progress()
        with self._named(newest):
            self.recorder.resume(newest)
            load_state(self.runtime.accelerator, self.model, self.optimizer, newest)
            progress = Progress(**commit.read_state(newest))
            self.objective.resume(progress.objective)
        self._extend(progress, self.origin.changed(manifest.read(newest)))
        if self.runtime.main:
            log.info("resumed from %s (step %d)", newest, progress.step)
        return progress

    @contextlib.contextmanager
    def _named(self, folder: Path) -> Iterator[None]:
        """A checkpoint that verifies, by its sizes alone or with a manifest to match, may still hold garbage."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if self.runtime.count > 1 and isinstance(error, RuntimeError):  # perhaps another rank's failure
                raise
            raise NoCheckpointError(
                f"{folder}: it verifies (checkpoint.verify: {self.config.checkpoint.verify}), but cannot be loaded "
                f"({type(error).__name__}: {error}). Move it elsewhere to resume from the one before it"
            ) from error

    def _extend(self, progress: Progress, changed: Mapping[str, str]) -> None:
        """Take over the new end: from here on all is as in a run that was planned for it, so nothing else is to do."""
        if not changed:
            return
        self.extended = list(changed.values())
        total = self.objective.plan.total_steps
        if total <= progress.step:
            raise UserError(
                f"run.extend: the new end, step {total}, does not lie after step {progress.step}, which the run has "
                "reached: raise whichever of duration.max_steps, duration.max_epochs and duration.max_tokens are given"
            )
        progress.validations_without_better = 0  # else a run that patience has ended would end at once
        if self.runtime.main:
            log.info("extended after step %d, now to step %d: %s", progress.step, total, "; ".join(changed.values()))
