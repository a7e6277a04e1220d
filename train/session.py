"""One run in its folder: the lock, the status file, messages at the start and at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from train.config import Config
from train.engine import run_info
from train.engine.flops import Peak
from train.engine.loop import SHARE_REACHED, Outcome, Progress
from train.engine.quiet_libraries import quiet_libraries
from train.engine.runtime import Runtime
from train.failure.heartbeat import HEARTBEAT
from train.failure.lock import Hold, hold
from train.failure.stop import Interrupted, Status, Stop, read_status
from train.failure.watchdog import Watchdog
from train.fingerprint import fingerprint, flat
from train.protocols import Objective
from train.recipe import to_yaml
from train.recipe_warnings import about_schedule
from zerotune.common.console import say
from zerotune.common.errors import CannotWriteError
from zerotune.common.files import json_object, write_atomically
from zerotune.common.mask_secrets import exposed
from zerotune.common.metric_format import percent

REMOVED = "the run folder was removed"

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Session:
    """A locked run folder. afterwards: contexts to close last, after an error was recorded in status.json."""

    folder: Path
    afterwards: contextlib.ExitStack
    stop: Stop
    runtime: Runtime
    status: Status
    held: Hold
    watchdog: Watchdog

    def begin(self, step: int) -> None:
        """The run has begun, after `step`: from now on it writes into its folder. A collective."""
        self.held.begun = True
        self.watchdog.begin(step)

    def is_over(self, config: Config, progress: Progress, extended: bool) -> bool:
        """Whether the run had already finished; if so, say it. A collective."""
        before = read_status(self.folder)
        done = before.get("state") == "finished" and before.get("step") == progress.step and not extended
        merged = self.folder / "merged"
        over = self.runtime.main and done and (merged.is_dir() or not config.merge.at_end)
        if over:
            model = f" Its model is in {merged}." if merged.is_dir() else ""
            again = " again" if merged.is_dir() else ""
            say(
                f"{self.folder} is finished, after step {progress.step} ({before.get('reason')}).{model} Nothing was "
                "changed. To train longer, set a later end and --run.extend true, for example "
                f"--duration.max_steps {2 * progress.step} (and a higher duration.max_epochs). To merge{again}: "
                f"python -m train.merge {self.folder} {merged}. To start from the beginning, set another run.folder."
            )
        return bool(self.runtime.sum([float(over)])[0])

    def stop_requested(self) -> bool:
        """Whether this rank was asked to stop, or the run folder was removed."""
        if self.stop.reason is None and self.held.removed():
            self.stop.reason = REMOVED
        return self.stop.requested()

    def require_folder(self) -> None:
        """Raise CannotWriteError if the folder was removed or renamed: do not write into a new one of that name."""
        if self.held.removed():
            raise CannotWriteError(
                f"{self.folder} was removed or renamed while this run was writing into it. It ends after step "
                f"{HEARTBEAT.step}. If the folder was renamed, set run.folder to its new name to resume the run"
            )

    def merge_and_report(self, config: Config, outcome: Outcome) -> Outcome:
        """Merge the finished run and write its report. After Ctrl-C, the same command does the rest."""
        try:
            with self.stop.saving(False):
                from train.merge.steps import merge
                from train.report import print_table, write_report

                if config.merge.at_end:
                    merge(self.folder, self.folder / "merged", config.merge, code=config.model.trust_remote_code)
                write_report(self.folder)
                print_table(self.folder)
        except Interrupted:
            return dataclasses.replace(outcome, state="preempted")
        return outcome

    def finish(self, outcome: Outcome) -> None:
        """Report how the run ended."""
        if not self.runtime.main:
            return
        self.stop.clear()  # also after a request that came too late: the next start must not stop at once
        if outcome.state == "finished":
            self.status.write("finished", outcome.step, outcome.reason, 0)
            return
        reason = self.stop.reason or (
            outcome.reason if outcome.reason == SHARE_REACHED else "another rank was asked to stop"
        )
        self.status.write("preempted", outcome.step, reason, self.stop.exit_code)
        say(f"Stopped after step {outcome.step} ({reason}); the same command resumes from there.")


@contextlib.contextmanager
def session(config: Config, runtime: Runtime, stop: Stop) -> Iterator[Session]:
    """Lock the run folder, watch for stop requests and failing or hanging ranks, and record the end in status.json."""
    folder = Path(config.run.folder)
    logging.basicConfig(level=logging.INFO if runtime.main else logging.WARNING, format="%(levelname)s %(message)s")
    quiet_libraries(runtime.main)
    status = Status(folder)
    with (
        hold(folder, runtime) as held,
        Watchdog(folder, runtime, config.run.hang_seconds, status) as watchdog,
        contextlib.ExitStack() as afterwards,
    ):
        stop.watch(folder if runtime.main else None, config.run.stop_after_minutes)
        stop.on_launcher_death = watchdog.launcher_died
        with watchdog.first_error():
            yield Session(folder, afterwards, stop, runtime, status, held, watchdog)


def describe(
    config: Config,
    runtime: Runtime,
    objective: Objective,
    parameters: tuple[int, int],
    peak: Peak,
    resumed: Progress,
    extended: Sequence[str] = (),
) -> None:
    """Write config.yaml and run.json into the run folder, and print a summary.

    extended: changes of the recipe with which the run was extended.
    """
    if not runtime.main:
        return
    folder, (trained, total) = Path(config.run.folder), parameters
    write_atomically(folder / "config.yaml", to_yaml(config))
    objective.save_assets(folder / "tokenizer")
    run_info.write(
        folder,
        **run_info.circumstances(runtime.device),
        **objective.metadata,
        config=dataclasses.asdict(config),
        fingerprint=fingerprint(config),
        world_size=runtime.count,
        sharding=runtime.kind,
        precision=runtime.precision,
        parameters={"trained": trained, "total": total},
        peak=dataclasses.asdict(peak),
        lower_is_better=dict(config.spec.metrics),
        total_steps=objective.plan.total_steps,
    )
    if extended:
        before = json_object(folder / "run.json").get("extended", [])
        run_info.write(folder, extended=[*before, {"after_step": resumed.step, "changed": list(extended)}])
    ranks = f"{runtime.count} process{'es' if runtime.count > 1 else ''}"
    start = f", continuing after step {resumed.step:,}" if resumed.step else ""
    lines = [
        f"{config.run.folder}: {ranks}, {runtime.kind}, {runtime.precision}, {runtime.device}{start}",
        f"trained: {trained:,} of {total:,} parameters ({percent(trained / total)})",
        *objective.metadata["data_lines"],
        *objective.plan.lines,
        *about_schedule(config.optim, objective.plan.total_steps),
    ]
    for line in lines:
        say(line)
    for key, variable in exposed(flat(config)):
        log.warning(
            "%s contains the value of $%s. config.yaml and checkpoints store the recipe unchanged: set secrets only in "
            "the environment", key, variable,
        )  # fmt: skip
