"""Compiles DeepSpeed's operator for CPU ranks once, without the risk of waiting for a dead process.

PyTorch protects a build with a file named `lock` and waits forever for its removal: a process killed while compiling
would hang every later run. Here the compiling process also holds a lock that the kernel releases with the process, in
a folder of our own; a file `lock` found there is a leftover.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from zerotune.common.cache_home import DEFAULT, cache_home
from zerotune.common.errors import UserError

log = logging.getLogger(__name__)


def folder() -> Path:
    """The folder of compiled operators: $TORCH_EXTENSIONS_DIR, else in our cache."""
    installed = hashlib.sha256(f"{sys.prefix} {sys.version} {torch.__version__}".encode())
    kind = installed.hexdigest()[:12]
    place = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache_home() / "native" / kind)
    if place.exists() and place.stat().st_uid != os.getuid():  # never run machine code of another user
        return Path(DEFAULT).expanduser() / "native" / f"{kind}-{os.getuid()}"
    return place


def build_for_cpu() -> None:
    """Compile and load the operator, one process per machine at a time. Raises UserError without a compiler."""
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(place)
    # Versions of ninja hash commands differently and would build again: always use the environment's.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    with FileLock(place / ".builder"):
        for left_over in place.glob("*/lock"):
            left_over.unlink()
        if not any(place.glob("*/*.so")):
            log.warning("compiling DeepSpeed's operator for CPU ranks into %s (once, about a minute)", place)
        # Imported here: it takes seconds, and only sharding on a CPU needs it.
        backend: Any = importlib.import_module("deepspeed.comm.torch")
        backend.print = log.debug  # it prints on every rank
        try:
            backend.build_shm_op()
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"DeepSpeed cannot compile its operator for CPU ranks ({str(error).strip().splitlines()[0]}). Is a C++ "
                "compiler installed (apt-get install g++)? Without one, use accelerate_configs/cpu_ddp.yaml"
            ) from error
