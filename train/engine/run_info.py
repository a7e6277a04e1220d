"""run.json: what one needs to know to repeat a run. Never the environment."""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from zerotune.common.files import write_atomically
from zerotune.common.masking import mask_all
from zerotune.common.sentinel import LAUNCHERS
from zerotune.common.version import code_state

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


def write(run_folder: Path, **facts: Any) -> None:
    """Add `facts` to RUN/run.json, later ones over earlier ones, atomically; a resumed run keeps its first `started`.

    docs/watching.md lists the keys. Raises CannotWriteError on a full disk.
    """
    path = run_folder / "run.json"
    known = read(run_folder)
    if "started" in known:
        facts.pop("started", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(mask_all({**known, **facts}), indent=2, ensure_ascii=False, default=str) + "\n")


def read(run_folder: Path) -> dict[str, Any]:
    """What stands in RUN/run.json; empty where there is none."""
    try:
        known = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def circumstances(device: torch.device) -> dict[str, Any]:
    """The facts that hold for any run: time, command line, versions, state of the code, device."""
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' * (threads > 1)}"
    return {
        "started": now(),
        "command": command(),
        "versions": versions(),
        "code": code_state(Path(__file__).parent),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
    }


def command() -> list[str]:
    """What started this run: its own arguments, or those of the launcher that started this process with them."""
    installed = Path(sys.argv[0]).name == "zerotune"  # the console script
    own = ["zerotune", *sys.argv[1:]] if installed else [Path(sys.executable).name, *sys.argv]
    try:
        above = psutil.Process().parent()
        parts = above.cmdline() if above else []
    except psutil.Error:
        return own
    launcher = next((place for place, part in enumerate(parts) if Path(part).name in LAUNCHERS), None)
    if launcher is None or parts[len(parts) - len(sys.argv[1:]) :] != sys.argv[1:]:
        return own
    return [*AS_TYPED.get(parts[launcher], [Path(parts[launcher]).name]), *parts[launcher + 1 :]]


def now() -> str:
    """UTC, to the second: 2026-01-31T12:00:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str | None]:
    """Of Python, CUDA and the packages whose numbers a run depends on; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
