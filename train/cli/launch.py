"""`zerotune train` and `zerotune eval`: in this process, or through `accelerate launch`.

Options are checked before a launcher starts, so that a mistake gives one message instead of one per process.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from train.cli.environment import default_config
from train.command_words import refuse_slips, split, with_recipes
from zerotune import shipped
from zerotune.common.console import say
from zerotune.common.errors import UserError
from zerotune.common.suggest import did_you_mean
from zerotune.common.version import ROOT
from zerotune.common.yaml_lines import read_yaml

FOR_SEVERAL = ("--rdzv_backend", "static", "--same_network", "--deepspeed_multinode_launcher", "standard")
PORT = "29500"


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
        if options or default_config().is_file() or _gpus() > 1:
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


def _gpus() -> int:
    say("looking for GPUs")
    import torch  # counts without starting CUDA, so that this process may still fork

    return torch.cuda.device_count()


def start(options: Mapping[str, str], script: str, words: Sequence[str]) -> NoReturn:
    """Replace this process by `accelerate launch`, which keeps its signals, output and exit code."""
    command = [*launcher(options), str(ROOT / script), *words]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)  # noqa: S606 (no shell is wanted)


def launcher(options: Mapping[str, str]) -> list[str]:
    """The command line of `accelerate launch`. Raises UserError for options that contradict each other."""
    file = _config(options)
    settings = read_yaml(file).value
    if not isinstance(settings, dict):
        raise UserError(f"{file}: not an accelerate config: it must be a mapping of keys to values")
    processes, machines = (_number(options, settings, f"num_{what}") for what in ("processes", "machines"))
    given = {name: value for name, value in options.items() if name != "accelerate"}
    if settings.get("distributed_type") in ("NO", "MULTI_CPU") and (processes or 1) > 1:
        raise UserError(f"--accelerate: {file} starts one process, not {processes}; use ddp, zero2 or another config")
    if machines and machines > 1:
        wanted = ("num_processes", "machine_rank", "main_process_ip")
        missing = [f"--{name}" for name in wanted if name not in given and name not in settings]
        if missing:
            raise UserError(f"--num_machines {machines}: {', '.join(missing)} missing; add them")
        given.setdefault("main_process_port", str(settings.get("main_process_port") or PORT))
    elif stray := next((name for name in ("machine_rank", "main_process_ip") if name in options), None):
        raise UserError(f"--{stray}: only for several machines; add --num_machines")
    elif not processes:
        given["num_processes"] = str(max(1, _gpus()))
    # -P: a file torch.py in the current folder must not be imported as the library.
    command = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file", str(file)]
    command += [word for name, value in given.items() for word in (f"--{name}", value)]
    if machines and machines > 1:
        command += FOR_SEVERAL
    deepspeed = settings.get("deepspeed_config")
    if isinstance(deepspeed, dict) and "deepspeed_config_file" in deepspeed:
        command += ["--deepspeed_config_file", shipped.from_here(str(deepspeed["deepspeed_config_file"]))]
    return command


def _config(options: Mapping[str, str]) -> Path:
    """The file of --accelerate, or a config that fits the other options."""
    if not (name := options.get("accelerate")):
        if default_config().is_file():
            return default_config()
        single, several = ("one_gpu", "ddp") if _gpus() else ("cpu", "cpu_ddp")
        name = single if options.get("num_processes") == "1" else several
    if file := shipped.find(name, shipped.ACCELERATE):
        return file
    known = list(shipped.names(shipped.ACCELERATE))
    near = did_you_mean(name, known) or f"; use a file, or one of {', '.join(known)}"
    raise UserError(f"--accelerate {name}: there is no such accelerate config{near}")


def _number(options: Mapping[str, str], settings: Mapping[str, Any], name: str) -> int | None:
    value = options.get(name, settings.get(name))
    return int(str(value)) if str(value).isdecimal() else None


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
