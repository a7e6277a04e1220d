"""run.json: what is needed to repeat a run, without environment variables."""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from zerotune.common.console import counted
from zerotune.common.files import json_object, write_atomically
from zerotune.common.launcher_watch import LAUNCHERS
from zerotune.common.mask_secrets import mask_all
from zerotune.common.version import code_state, installed_version

_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "deepspeed",
    "peft",
    "bitsandbytes",
    "datasets",
    "safetensors",
    "flash-attn",
)
AS_TYPED = {"accelerate.commands.launch": ["accelerate", "launch"], "torch.distributed.run": ["torchrun"]}


def write(run_folder: Path, **values: Any) -> None:
    """Add `values` to RUN/run.json atomically, replacing earlier values; a resumed run keeps its first `started`.

    docs/watching.md lists the keys. Raises CannotWriteError on a full disk.
    """
    path = run_folder / "run.json"
    known = json_object(path)
    if "started" in known:
        values.pop("started", None)
    write_atomically(path, json.dumps(mask_all({**known, **values}), indent=2, ensure_ascii=False, default=str) + "\n")


def circumstances(device: torch.device) -> dict[str, Any]:
    """Time, command line, versions, state of the code, device."""
    threads = torch.get_num_threads()
    cpu = f"CPU, {counted(threads, 'thread')}"
    return {
        "started": now(),
        "command": command(),
        "versions": versions(),
        "code": code_state(Path(__file__).parent),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
    }


def command() -> list[str]:
    """The command line of the launcher that started this process, else of this process."""
    installed = Path(sys.argv[0]).name == "zerotune"  # the console script
    own = ["zerotune", *sys.argv[1:]] if installed else [Path(sys.executable).name, *sys.argv]
    try:
        parent = psutil.Process().parent()
        parts = parent.cmdline() if parent else []
    except psutil.Error:
        return own
    launcher = next((place for place, part in enumerate(parts) if Path(part).name in LAUNCHERS), None)
    if launcher is None or parts[len(parts) - len(sys.argv[1:]) :] != sys.argv[1:]:
        return own
    return [*AS_TYPED.get(parts[launcher], [Path(parts[launcher]).name]), *parts[launcher + 1 :]]


def now() -> str:
    """The time in UTC: 2026-01-31T12:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str | None]:
    """Versions of Python, CUDA and the packages that affect numbers; None if not installed."""
    found = {name: installed_version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "cuda": torch.version.cuda, **found}
