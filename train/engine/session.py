"""One run in its folder: the lock, the status file, what is said before the first step and how the run is seen to
end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from eval.files import write_atomically
from eval.masking import exposed, printable
from train.config import Config
from train.engine import record
from train.engine.flops import Peak
from train.engine.lock import hold
from train.engine.loop import Outcome, Progress
from train.engine.quiet import quiet_libraries
from train.engine.runtime import Runtime
from train.engine.stop import Stop, write_status
from train.engine.watchdog import Watchdog
from train.fingerprint import fingerprint, flat
from train.protocols import Objective
from train.recipe import to_yaml

log = logging.getLogger(__name__)


@contextlib.contextmanager
def session(config: Config, runtime: Runtime, stop: Stop) -> Iterator[tuple[Path, contextlib.ExitStack]]:
    """Hold the run folder, look for stop requests and for ranks that fail or hang, and leave a status.json that tells
    how the run ended. Gives the folder, and a stack for what is ended last: an error stands in status.json by then.
    """
    folder = Path(config.run.folder)
    logging.basicConfig(level=logging.INFO if runtime.main else logging.WARNING, format="%(levelname)s %(message)s")
    quiet_libraries(runtime.main)
    with (
        hold(folder, runtime),
        Watchdog(folder, runtime, config.run.hang_seconds) as watchdog,
        contextlib.ExitStack() as afterwards,
    ):
        stop.watch(folder if runtime.main else None, config.run.stop_after_minutes)
        with watchdog.first_error():
            if runtime.main:
                write_status(folder, "running", 0)
            yield folder, afterwards


def finish(folder: Path, outcome: Outcome, stop: Stop, runtime: Runtime) -> None:
    """Say how the run ended."""
    if not runtime.main:
        return
    stop.obeyed()  # also where the request came too late to matter: the next start must not stop at once
    if outcome.state == "finished":
        write_status(folder, "finished", outcome.step, outcome.reason, 0)
        return
    reason = stop.reason or "another rank was asked to stop"
    write_status(folder, "preempted", outcome.step, reason, 0)
    Console(stderr=True).print(f"Stopped after step {outcome.step} ({reason}); the same command continues from there.")


def describe(
    config: Config, runtime: Runtime, objective: Objective, parameters: tuple[int, int], peak: Peak, resumed: Progress
) -> None:
    """What the run is: into its folder, and onto the screen what a user would otherwise compute by hand."""
    if not runtime.main:
        return
    folder, (trained, total) = Path(config.run.folder), parameters
    write_status(folder, "running", resumed.step)
    write_atomically(folder / "config.yaml", to_yaml(config))
    objective.save_assets(folder / "tokenizer")
    record.write(
        folder,
        **record.circumstances(runtime.device),
        **objective.facts,
        config=dataclasses.asdict(config),
        fingerprint=fingerprint(config),
        world_size=runtime.count,
        sharding=runtime.kind,
        precision=runtime.precision,
        parameters={"trained": trained, "total": total},
        peak=dataclasses.asdict(peak),
        lower_is_better=dict(objective.lower_is_better),
        total_steps=objective.plan.total_steps,
    )
    ranks = f"{runtime.count} process{'es' if runtime.count > 1 else ''}"
    start = f", continuing after step {resumed.step:,}" if resumed.step else ""
    lines = [
        f"{config.run.folder}: {ranks}, {runtime.kind}, {runtime.precision}, {runtime.device}{start}",
        f"trained: {trained:,} of {total:,} parameters ({trained / total:.2%})",
        *objective.facts["data_lines"],
        *objective.plan.lines,
    ]
    console = Console(stderr=True, highlight=False)
    for line in lines:
        console.print(printable(line), soft_wrap=True, markup=False)
    for key, variable in exposed(flat(config)):
        log.warning(
            "%s holds the value of $%s. A recipe is kept as it is, in config.yaml and in checkpoints: leave secrets to "
            "the environment", key, variable,
        )  # fmt: skip
