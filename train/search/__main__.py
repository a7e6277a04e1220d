"""`python -m train.search RECIPE --space SPACE.yaml`: search over the keys of a recipe. See docs/search.md."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train.command_words import OPTIONS as LAUNCHER_OPTIONS
from train.command_words import recipe_file, split
from train.config import Config
from train.launcher import launch_command
from train.recipe import parse
from train.recipe_command import Option, own_options, refuse_launcher, run_command, usage_text, whole_number
from train.search.comparable import different_tokens
from train.search.space import Space, check_values, read_space
from zerotune.common.console import counted, say
from zerotune.common.errors import UserError
from zerotune.common.files import require_writable
from zerotune.common.mask_secrets import printable
from zerotune.common.process_exit import exit_process, exit_quietly_on_ctrl_c

if TYPE_CHECKING:
    from train.search.study import Study
    from train.search.trial import Starter

PROG = "python -m train.search"
OWN = {
    "--space": Option("the space file: which keys, how to choose, how many trials"),
    "--study": Option("the folder of the search (default: run.folder + -search)"),
    "--workers": Option("trials that run at once on this machine", "1"),
    "--stop_file": Option("stop, as after Ctrl-C, once this file exists; it is removed"),
    "--dry_run": Option("print the trials, start nothing", takes="none"),
}


@dataclass(frozen=True)
class Options:
    """The command line. recipe: the words that describe the base recipe. launch: options of the launcher."""

    space: str
    study: str
    workers: int
    stop_file: str
    dry_run: bool
    recipe: tuple[str, ...]
    launch: Mapping[str, str]

    def launch_words(self, base: Config) -> list[str]:
        """What a trial is started with beside its recipe: options that only the command line takes."""
        code = ["--model.trust_remote_code", "true"] if base.model.trust_remote_code else []
        return [*(word for name, value in self.launch.items() for word in (f"--{name}", value)), *code]


def main(arguments: Sequence[str] | None = None, prog: str = PROG, starter: Starter | None = None) -> int:
    """Search, or continue a search; returns the exit code. starter: of trials, in place of `zerotune train`."""
    return run_command(arguments, usage(prog), lambda words: _search(options(words), starter))


def options(words: Sequence[str]) -> Options:
    """The command line, read. Raises UserError."""
    launch, rest = split(words)
    if "num_machines" in launch or "machine_rank" in launch:
        raise UserError("--num_machines: a trial runs on one machine; start the same command on each (docs/search.md)")
    own, recipe = own_options(rest, OWN, LAUNCHER_OPTIONS)
    if not own["--space"]:
        raise UserError("--space is missing: give a file that says which keys to search, see docs/search.md")
    if launch:
        launch.setdefault("main_process_port", "0")  # trials on one machine must not share one
    return Options(
        space=recipe_file(own["--space"], "spaces/"),
        study=own["--study"],
        workers=whole_number("--workers", own["--workers"]),
        stop_file=own["--stop_file"],
        dry_run=bool(own["--dry_run"]),
        recipe=recipe,
        launch=launch,
    )


def usage(prog: str = PROG) -> str:
    """The help, in 80 columns."""
    head = [
        f"usage: {prog} RECIPE [RECIPE ...] --space SPACE.yaml",
        "       [--study FOLDER] [--workers N] [--dry_run]",
        "       [--optim.learning_rate 1e-4 ...]",
    ]
    about = (
        "Trains a recipe with different values of some of its keys. Each trial is a run of its own. The same command "
        "continues a search that was stopped or killed; the same command in another terminal, or on another node,"
        " helps."
    )
    others = "and other options of the launcher: as in zerotune train, for each trial"
    return usage_text(head, about, OWN, {f"--{LAUNCHER_OPTIONS[0]} NAME": others})


def _search(chosen: Options, starter: Starter | None) -> int:
    refuse_launcher("a search")
    from train.preflight import check_inputs
    from train.search.study import refuse_another

    base = parse(chosen.recipe, warns=True)
    if not (base.data.validation or base.data.validation_fraction):
        raise UserError("data.validation: a search compares trials on held-out data: set it, or validation_fraction")
    space = read_space(Path(chosen.space))
    check_values(space, chosen.recipe, check_inputs)
    if chosen.launch:
        launch_command(chosen.launch)
    metric, minutes = _metric(base, space), base.run.stop_after_minutes
    folder = Path(chosen.study or f"{base.run.folder.rstrip('/')}-search")
    base = dataclasses.replace(
        base,
        run=dataclasses.replace(base.run, stop_after_minutes=None),
        validation=dataclasses.replace(base.validation, metric=metric),
    )
    require_writable(folder)
    refuse_another(folder, space, base)
    if warning := different_tokens(space.parameters, metric):
        say(warning)
    if chosen.dry_run:
        from train.search.preview import preview

        sys.stdout.write(printable(preview(space, chosen.recipe)))
        return 0
    return _run(chosen, folder, base, space, minutes, starter)


def _run(
    chosen: Options, folder: Path, base: Config, space: Space, minutes: float | None, starter: Starter | None
) -> int:
    """minutes: after which the search stops."""
    from train.search.runner import Search, StopRequest
    from train.search.study import Study, prepare
    from train.search.trial import Starter

    metric = base.validation.metric
    prepare(folder, space, base)
    study = Study(folder, space, base.spec.metrics[metric])
    starter = dataclasses.replace(starter or Starter(), launch=chosen.launch_words(base))
    stop = StopRequest(minutes, Path(chosen.stop_file) if chosen.stop_file else None)
    only = f"; the space has only {counted(space.trials, 'point')}" if space.is_exhausted else ""
    say(f"{folder}: {counted(space.trials, 'trial')}, {space.config.method}, by validation {metric}{only}")
    with stop.installed():
        ended = Search(study, base, chosen.recipe, starter, chosen.workers, stop).run()
    if stop.requested():
        say(f"Stopped ({stop.reason}); the same command continues the search.")
    elif not ended:
        say(f"Nothing is left to start here; other processes still run trials of {folder}. The last one reports.")
    else:
        _finish(study)
    return stop.exit_code


def _finish(study: Study) -> None:
    """Report a study whose trials have all ended. Raises UserError if all have failed."""
    records = study.records()
    if all(record.state == "failed" for record in records):
        raise UserError(f"all {counted(len(records), 'trial')} failed; trial 0: {records[0].reason}")
    say("writing the report")
    from train.search.report import BEST, write_study_report

    with study.locked():
        path = write_study_report(study)
    say(f"{path}, {path.with_name('report.html')}; the best recipe: {path.with_name(BEST)}")


def _metric(base: Config, space: Space) -> str:
    """The metric that decides. Raises UserError if the objective does not have it."""
    metric = base.spec.metric(base.validation.metric if space.config.metric == "auto" else space.config.metric)
    if metric not in base.spec.metrics:
        place = space.located.places[("metric",)]
        raise UserError(f"{place}: {base.objective} has no metric {metric}; it has {', '.join(base.spec.metrics)}")
    if metric == "exact_match" and not base.validation.exact_match_rows:
        raise UserError("metric: exact_match is only measured with validation.exact_match_rows above 0")
    return metric


if __name__ == "__main__":
    exit_quietly_on_ctrl_c()
    exit_process(main())
