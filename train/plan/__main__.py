"""`python -m train.plan RECIPE`: does a run fit, and what does it take? See docs/planning.md."""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from train.command_words import refuse_slips, with_recipes
from train.config import Config
from train.recipe import parse
from zerotune.common.byte_sizes import bytes_of
from zerotune.common.errors import UserError
from zerotune.common.mask_secrets import hide_secrets, printable
from zerotune.common.process_exit import exit_process, exit_quietly_on_ctrl_c

PROG = "python -m train.plan"
OWN = {
    "--accelerate": "accelerate config, by name or file (default: one_gpu, or ddp for several GPUs)",
    "--nodes": "number of machines (default: 1)",
    "--gpus-per-node": "GPUs of a machine (default: 1)",
    "--gpu-memory": "memory of a GPU, such as 80GB or 79.6GiB (default: 80GB)",
    "--gpu": "its name, such as H100 or A100, for times",
    "--utilization": "share of its peak that training reaches, for times (default: 0.4)",
    "--ranks": "numbers of GPUs, for a table: --ranks 8 64 1024",
    "--format": "text, markdown or json (default: text)",
}
FORMATS = ("text", "markdown", "json")


@dataclass(frozen=True)
class Options:
    """The command line. recipe: the words that describe the recipe."""

    recipe: tuple[str, ...]
    accelerate: str
    gpus: int
    memory: int
    gpu: str
    utilization: float
    ranks: tuple[int, ...]
    format: str


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Print the plan; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if {"-h", "--help"} & set(words):
        sys.stdout.write(usage(prog))
        raise SystemExit(0)
    hide_secrets()
    try:
        sys.stdout.write(printable(_planned(options(words))))
    except UserError as error:
        sys.stderr.write(printable(f"{error}\n"))
        return error.exit_code
    return 0


def options(words: Sequence[str]) -> Options:
    """The command line, read. Raises UserError."""
    own: dict[str, list[str]] = {}
    others: list[str] = []
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name not in OWN:
            others.append(f"{name}{equals}{value}")
            continue
        values = [value] if equals else []
        while rest and not rest[0].startswith("-") and (not values or name == "--ranks"):
            values.append(rest.pop(0))
        if not values:
            raise UserError(f"{name} needs a value: {OWN[name]}")
        own[name] = values
    refuse_slips(others, Config, [name.removeprefix("--") for name in OWN])
    recipe = with_recipes(others)
    if "--config" not in {word.partition("=")[0] for word in recipe}:
        raise UserError("no recipe: give a file, or a name that `zerotune recipes` lists")
    gpus = _whole(own, "--nodes") * _whole(own, "--gpus-per-node")
    kind = own.get("--format", ["text"])[0]
    if kind not in FORMATS:
        raise UserError(f"--format {kind}: must be {', '.join(FORMATS)}")
    return Options(
        recipe=tuple(recipe),
        accelerate=own.get("--accelerate", ["one_gpu" if gpus == 1 else "ddp"])[0],
        gpus=gpus,
        memory=bytes_of(own.get("--gpu-memory", ["80GB"])[0], "--gpu-memory"),
        gpu=own.get("--gpu", [""])[0],
        utilization=_share(own.get("--utilization", ["0.4"])[0]),
        ranks=tuple(_number("--ranks", text) for text in own.get("--ranks", [])),
        format=kind,
    )


def _whole(own: dict[str, list[str]], name: str) -> int:
    return _number(name, own.get(name, ["1"])[0])


def _number(name: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,7}", text) or not int(text):
        raise UserError(f"{name} {text}: must be a whole number from 1 on")
    return int(text)


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

    def line(name: str, text: str) -> str:
        return textwrap.fill(text, 80, initial_indent=f"  {name:<22}", subsequent_indent=" " * 24)

    return "\n".join(
        [
            f"usage: {prog} RECIPE [RECIPE ...] [--nodes 4 --gpus-per-node 8]",
            "       [--gpu-memory 80GB] [--ranks 8 64 1024] [--optim.name adamw_8bit ...]",
            "",
            "Computes the memory, time, disk space and communication of a run before it",
            "starts. It needs no GPU and reads no weights and no data.",
            "",
            *(line(name, text) for name, text in OWN.items()),
            line("--KEY VALUE", "any key of the recipe, as in training (zerotune train --help)"),
            "",
        ]
    )


def _planned(chosen: Options) -> str:
    config = parse(chosen.recipe, warns=True)
    from train.engine.quiet_libraries import quiet_libraries
    from train.plan import report
    from train.plan.advice import fastest, smallest_change
    from train.plan.launch import conflicts, layout_of, read_files
    from train.plan.plan import Machine, plan, read_model
    from train.plan.weights import local_model, precision_of

    quiet_libraries(True)
    files = read_files(chosen.accelerate)
    item = 4 if precision_of(config) == "fp32" else 2
    layout = layout_of(files, chosen.gpus, item)
    if layout.kind == "single" and chosen.gpus > 1:
        raise UserError(f"--accelerate {chosen.accelerate}: it starts one process; choose ddp, zero2 or another config")
    machine = Machine(chosen.memory, chosen.gpu, chosen.utilization)
    with local_model(config) as known:
        model = read_model(known, config.model.name)
        found = plan(model, layout, machine, tuple(conflicts(files, layout, config)))
        if files.get("use_cpu"):
            on_cpu = "memory on a CPU: these are the parts on a GPU"
            found = dataclasses.replace(found, unknown=(on_cpu, *found.unknown))
        change = smallest_change(model, layout, machine) if found.fits(machine) is False else None
        lines = report.notes(found, machine, change, fastest(model, layout, machine) if found.is_whole else None)
        table = [plan(model, dataclasses.replace(layout, ranks=ranks), machine) for ranks in chosen.ranks]
    written = {"text": report.as_text, "markdown": report.as_markdown, "json": report.as_json}
    return written[chosen.format](found, machine, lines, table)


if __name__ == "__main__":
    exit_quietly_on_ctrl_c()
    exit_process(main())
