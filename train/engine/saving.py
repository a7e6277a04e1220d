"""When a run saves and where it takes up again: the loop's progress, the sharded state and the commit protocol put
together.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from torch import nn

from train.config import Config
from train.engine import checkpoint, commit
from train.engine.loop import Progress
from train.engine.origin import Origin
from train.engine.runtime import Runtime
from train.engine.state import bytes_to_save, load_state, save_state
from train.errors import NoCheckpointError, UserError
from train.protocols import Objective, Tuning

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run. All methods are called by all ranks together."""

    def __init__(
        self,
        config: Config,
        runtime: Runtime,
        objective: Objective,
        model: nn.Module,
        optimizer: Any,
        tuning: Tuning,
    ) -> None:
        self.config, self.runtime, self.objective = config, runtime, objective
        self.model, self.optimizer, self.tuning = model, optimizer, tuning
        self.folder = Path(config.run.folder) / "checkpoints"
        digests = {
            "chat template": objective.facts["template_hash"],
            "data": objective.facts["data_digest"],
            "base model": objective.facts["model"]["digest"],
        }
        self.origin = Origin.of(config, runtime.kind, runtime.count, digests)

    def save(self, progress: Progress) -> None:
        """Commit a checkpoint, then remove those that are no longer kept."""

        def write(folder: Path) -> None:
            save_state(self.runtime.accelerator, self.model, self.optimizer, folder)
            if self.runtime.main:
                (folder / "tuning").mkdir()
                self.tuning.save({}, self.runtime.unwrap(self.model), folder / "tuning")

        progress.objective = dict(self.objective.state())
        state = dataclasses.asdict(progress)
        mine = float(bytes_to_save(self.runtime.accelerator, self.model, self.optimizer))
        needed = int(self.runtime.sum([mine])[0])
        commit.commit(self.folder, progress.step, write, state, self.origin, self.runtime, expected_bytes=needed)
        best = progress.best_step if self.config.checkpoint.keep_best else None
        checkpoint.prune(self.folder, self.config.checkpoint.keep_last, best, self.runtime)

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
        newest = checkpoint.newest(self.folder, self.runtime, self.origin, self.config.checkpoint.verify)
        if newest is None:
            if wish == "must":
                raise NoCheckpointError(f"run.resume: must, but {self.folder} holds no checkpoint")
            return Progress()
        load_state(self.runtime.accelerator, self.model, self.optimizer, newest)
        progress = Progress(**commit.read_state(newest))
        self.objective.resume(progress.objective)
        if self.runtime.main:
            log.info("resumed from %s (step %d)", newest, progress.step)
        return progress
