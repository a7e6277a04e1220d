"""`zerotune train` and `zerotune eval`: in this process, or in those of `accelerate launch`.

What goes to a launcher is checked here first: a mistake is one message at once, not one of every process.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from train.cli.environment import default_config
from train.command_words import OPTIONS, split, with_recipes
from zerotune import shipped
from zerotune.common import suggest
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
        raise UserError("no recipe: give a file, or a name that `zerotune recipes` lists")
    options, words = split(words)
    words = with_recipes(words)
    if {"-h", "--help"} & set(words):
        sys.stdout.write(_usage("train RECIPE [RECIPE ...]", "one process, or one for each of several GPUs"))
    _refuse_slips(words, Config)
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
    _refuse_slips(words, Config)
    if not _is_launched(options) and options:
        from eval.config import parse
        from eval.preflight import check_inputs

        check_inputs(parse(words))
        start(options, "eval/main.py", words)
    from eval.main import main

    return main(words)


def _refuse_slips(words: Sequence[str], settings: type) -> None:
    """A launcher's option in a wrong spelling: the programs know none of these and could not say what was meant."""
    own = {field.name for field in dataclasses.fields(settings)}
    for name in (word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")):
        meant = suggest.nearest(name, [*OPTIONS, *own], cutoff=0.75)
        if meant in OPTIONS and name not in own:
            raise UserError(f"unknown option --{name}; did you mean --{meant}?")


def _is_launched(options: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process. Raises UserError where it could not obey `options` any more."""
    launched = "RANK" in os.environ
    if launched and options:
        raise UserError(f"--{next(iter(options))}: a launcher has started this command already (RANK is set)")
    return launched


def _gpus() -> int:
    say("looking for GPUs")
    import torch  # counts without starting CUDA, so that this process may still fork

    return torch.cuda.device_count()


def start(options: Mapping[str, str], script: str, words: Sequence[str]) -> NoReturn:
    """Become `accelerate launch`: its signals, its output and its exit code are this command's."""
    command = [*launcher(options), str(ROOT / script), *words]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)  # noqa: S606 (no shell is wanted)


def launcher(options: Mapping[str, str]) -> list[str]:
    """`accelerate launch` of this Python with its options. Raises UserError for what cannot be meant."""
    file = _config(options)
    settings = read_yaml(file).value
    if not isinstance(settings, dict):
        raise UserError(f"{file}: is no accelerate config, which is a mapping of keys to values")
    processes, machines = (_number(options, settings, f"num_{what}") for what in ("processes", "machines"))
    given = {name: value for name, value in options.items() if name != "accelerate"}
    if settings.get("distributed_type") in ("NO", "MULTI_CPU") and (processes or 1) > 1:
        raise UserError(f"--accelerate: {file} starts one process, not {processes}: take ddp, zero2 or another")
    if machines and machines > 1:
        wanted = ("num_processes", "machine_rank", "main_process_ip")
        missing = [f"--{name}" for name in wanted if name not in given and name not in settings]
        if missing:
            raise UserError(f"{machines} machines: give {', '.join(missing)} too")
        given.setdefault("main_process_port", str(settings.get("main_process_port") or PORT))
    elif not processes:
        given["num_processes"] = str(max(1, _gpus()))
    # -P: a file of the user's that is called torch.py is not taken for the library.
    command = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--config_file", str(file)]
    command += [word for name, value in given.items() for word in (f"--{name}", value)]
    if machines and machines > 1:
        command += FOR_SEVERAL
    deepspeed = settings.get("deepspeed_config")
    if isinstance(deepspeed, dict) and "deepspeed_config_file" in deepspeed:
        command += ["--deepspeed_config_file", shipped.from_here(str(deepspeed["deepspeed_config_file"]))]
    return command


def _config(options: Mapping[str, str]) -> Path:
    """The file of the accelerate config that is named, or that fits the other options."""
    if not (name := options.get("accelerate")):
        if default_config().is_file():
            return default_config()
        single, several = ("one_gpu", "ddp") if _gpus() else ("cpu", "cpu_ddp")
        name = single if options.get("num_processes") == "1" else several
    if file := shipped.find(name, shipped.ACCELERATE):
        return file
    known = list(shipped.names(shipped.ACCELERATE))
    near = did_you_mean(name, known) or f"; there are {', '.join(known)}, and any file"
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
        "RECIPE is a file, or a name that `zerotune recipes` lists; later ones win.",
        "These options are the launcher's; all others are the program's, below.",
        "",
        option("--accelerate NAME", f"{names}, or a file of yours (default: {default})"),
        option("--num_processes N", "of all machines together (default: one for each GPU)"),
        option("--num_machines N", "several machines: the same command on each, with its own --machine_rank, "
               "and --main_process_ip, --main_process_port of the first"),
        "",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
