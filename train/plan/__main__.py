"""`python -m train.plan RECIPE`: does a run fit, and what does it take? See docs/planning.md."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from train.recipe import parse
from train.recipe_command import Option, own_options, run_command, usage_text, whole_number
from zerotune.common.byte_sizes import bytes_of
from zerotune.common.errors import UserError
from zerotune.common.mask_secrets import printable
from zerotune.common.process_exit import exit_process, exit_quietly_on_ctrl_c

PROG = "python -m train.plan"
OWN = {
    "--accelerate": Option("accelerate config, by name or file (default: one_gpu, or ddp for several GPUs)"),
    "--nodes": Option("number of machines", "1"),
    "--gpus-per-node": Option("GPUs of a machine", "1"),
    "--gpu-memory": Option("memory of a GPU, such as 80GB or 79.6GiB", "80GB"),
    "--gpu": Option("its name, such as H100 or A100, for times"),
    "--utilization": Option("share of its peak that training reaches, for times", "0.4"),
    "--ranks": Option("numbers of GPUs, for a table: --ranks 8 64 1024", takes="several"),
    "--format": Option("text, markdown or json", "text"),
}
FORMATS = ("text", "markdown", "json")


@dataclass(frozen=True)
class Options:
    """The command line. recipe: the words that describe the recipe."""

    recipe: tuple[str, ...]
    accelerate: str
    nodes: int
    gpus: int
    memory: int
    gpu: str
    utilization: float
    ranks: tuple[int, ...]
    format: str


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Print the plan; returns the exit code."""
    return run_command(arguments, usage(prog), lambda words: _print(options(words)))


def options(words: Sequence[str]) -> Options:
    """The command line, read. Raises UserError."""
    own, recipe = own_options(words, OWN)
    nodes = whole_number("--nodes", own["--nodes"])
    gpus = nodes * whole_number("--gpus-per-node", own["--gpus-per-node"])
    ranks = tuple(whole_number("--ranks", text) for text in own["--ranks"].split())
    if own["--format"] not in FORMATS:
        raise UserError(f"--format {own['--format']}: must be {', '.join(FORMATS)}")
    return Options(
        recipe=recipe,
        accelerate=own["--accelerate"] or ("one_gpu" if max((gpus, *ranks)) == 1 else "ddp"),
        nodes=nodes,
        gpus=gpus,
        memory=bytes_of(own["--gpu-memory"], "--gpu-memory"),
        gpu=own["--gpu"],
        utilization=_share(own["--utilization"]),
        ranks=ranks,
        format=own["--format"],
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UserError(f"--utilization {text}: must be above 0 and at most 1")
    return value


def usage(prog: str = PROG) -> str:
    """The help, in 80 columns."""
    head = [
        f"usage: {prog} RECIPE [RECIPE ...] [--nodes 4 --gpus-per-node 8]",
        "       [--gpu-memory 80GB] [--ranks 8 64 1024] [--optim.name adamw_8bit ...]",
    ]
    about = (
        "Computes the memory, time, disk space and communication of a run before it starts. It needs no GPU and reads "
        "no weights and no data."
    )
    return usage_text(head, about, OWN)


def _print(chosen: Options) -> int:
    sys.stdout.write(printable(_planned(chosen)))
    return 0


def _planned(chosen: Options) -> str:
    config = parse(chosen.recipe, warns=True)
    from train.engine.quiet_libraries import quiet_libraries
    from train.plan import report
    from train.plan.advice import fastest, smallest_change
    from train.plan.launch import conflicts, layout_of, not_planned, other_counts, read_files
    from train.plan.plan import Machine, plan, read_model
    from train.plan.weights import local_model, precision_of

    quiet_libraries(True)
    files = read_files(chosen.accelerate)
    item = 4 if precision_of(config) == "fp32" else 2
    layout, *layouts = (layout_of(files, ranks, item) for ranks in (chosen.gpus, *chosen.ranks))
    machine = Machine(chosen.memory, chosen.gpu, chosen.utilization)
    with local_model(config) as known:
        model = read_model(known, config.model.name)
        contradictions = (*other_counts(files, chosen.nodes, chosen.gpus), *conflicts(files, layout, config))
        missing = tuple(not_planned(files, layout))
        found = plan(model, layout, machine, contradictions, missing)
        if files.get("use_cpu"):
            on_cpu = "memory on a CPU: these are the parts on a GPU"
            found = dataclasses.replace(found, unknown=(on_cpu, *found.unknown))
        change = smallest_change(model, layout, machine) if found.fits(machine) is False else None
        lines = report.notes(found, machine, change, fastest(model, layout, machine) if found.is_whole else None)
        table = [plan(model, each, machine, missing=missing) for each in layouts]
    written = {"text": report.as_text, "markdown": report.as_markdown, "json": report.as_json}
    return written[chosen.format](found, machine, lines, table)


if __name__ == "__main__":
    exit_quietly_on_ctrl_c()
    exit_process(main())
