"""`zerotune train` and `zerotune eval`: in this process, or through `accelerate launch`.

Options are checked before a launcher starts, so that a mistake gives one message instead of one per process.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import NoReturn

from train import launcher
from train.command_words import refuse_slips, split, with_recipes
from zerotune import shipped
from zerotune.common.errors import UserError
from zerotune.common.version import ROOT


def train(words: Sequence[str]) -> int:
    """Train in this process and return its exit code, or become the launcher."""
    from train.config import Config

    if not words:
        raise UserError("no recipe: give a file, or a name from `zerotune recipes`")
    options, words = split(words)
    words = with_recipes(words)
    if {"-h", "--help"} & set(words):
        sys.stdout.write(_usage("train RECIPE [RECIPE ...]", "one process, or one per GPU if there are several"))
    refuse_slips(words, Config)
    if not _is_launched(options):
        from train.preflight import check_inputs
        from train.recipe import parse

        check_inputs(parse(words))
        if options or launcher.default_config().is_file() or launcher.gpus() > 1:
            start(options, "train/main.py", words)
    from train.main import main

    return main(words)


def evaluate(words: Sequence[str]) -> int:
    """Evaluate in this process and return its exit code, or become the launcher."""
    from eval.config import Config

    options, words = split(words)
    words = with_recipes(words, "eval/")
    if {"-h", "--help"} & set(words):
        sys.stdout.write(_usage("eval [RECIPE ...]", "one process"))
    refuse_slips(words, Config)
    if not _is_launched(options) and options:
        from eval.config import parse
        from eval.preflight import check_inputs

        check_inputs(parse(words))
        start(options, "eval/main.py", words)
    from eval.main import main

    return main(words)


def _is_launched(options: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process. Raises UserError where it could not obey `options` any more."""
    launched = "RANK" in os.environ
    if launched and options:
        raise UserError(
            f"--{next(iter(options))}: a launcher has already started this command (RANK is set); remove it"
        )
    return launched


def start(options: Mapping[str, str], script: str, words: Sequence[str]) -> NoReturn:
    """Replace this process by `accelerate launch`, which keeps its signals, output and exit code."""
    command = [*launcher.launch_command(options), str(ROOT / script), *words]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)  # noqa: S606 (no shell is wanted)


def _usage(command: str, default: str) -> str:
    def option(name: str, text: str) -> str:
        return textwrap.fill(text, 80, initial_indent=f"  {name:<22}", subsequent_indent=" " * 24)  # columns

    names = ", ".join(shipped.names(shipped.ACCELERATE))
    lines = [
        f"usage: zerotune {command} [--accelerate NAME] [options]",
        "",
        "RECIPE is a file, or a name from `zerotune recipes`; later ones override.",
        "Options of the launcher; the program's options are listed below.",
        "",
        option("--accelerate NAME", f"{names}, or a file (default: {default})"),
        option("--num_processes N", "processes on all machines together (default: one per GPU)"),
        option("--num_machines N", "number of machines: run the same command on each, with its own --machine_rank, "
               "and --main_process_ip, --main_process_port of the first"),
        "",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
