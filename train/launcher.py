"""The command line of `accelerate launch`, from the options `--accelerate NAME`, `--num_processes N` and the like."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zerotune import shipped
from zerotune.common.console import say
from zerotune.common.errors import UserError
from zerotune.common.suggest import did_you_mean

FOR_SEVERAL = ("--rdzv_backend", "static", "--same_network", "--deepspeed_multinode_launcher", "standard")
PORT = "29500"


def launch_command(options: Mapping[str, str]) -> list[str]:
    """The command line of `accelerate launch`. Raises UserError for options that contradict each other."""
    from zerotune.common.yaml_lines import read_yaml  # `zerotune env` needs no library

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
        given["num_processes"] = str(max(1, gpus()))
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
        single, several = ("one_gpu", "ddp") if gpus() else ("cpu", "cpu_ddp")
        name = single if options.get("num_processes") == "1" else several
    if file := shipped.find(name, shipped.ACCELERATE):
        return file
    known = list(shipped.names(shipped.ACCELERATE))
    near = did_you_mean(name, known) or f"; use a file, or one of {', '.join(known)}"
    raise UserError(f"--accelerate {name}: there is no such accelerate config{near}")


def _number(options: Mapping[str, str], settings: Mapping[str, Any], name: str) -> int | None:
    value = options.get(name, settings.get(name))
    return int(str(value)) if str(value).isdecimal() else None


def gpus() -> int:
    say("looking for GPUs")
    import torch  # counts without starting CUDA, so that this process may still fork

    return torch.cuda.device_count()


def default_config() -> Path:
    """The file that `accelerate config` writes and `accelerate launch` reads."""
    cache = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(cache, "accelerate", "default_config.yaml").expanduser()
