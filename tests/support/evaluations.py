"""The documented command, as a user starts it: real processes, alone or under a launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import PIPE

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "eval" / "main.py")
SECONDS = 280  # on a busy machine an import of transformers alone can take a minute


def alone(folder: Path, *words: str, extra: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, output and errors of one process. extra: environment variables."""
    return start([sys.executable, SCRIPT, *words], folder, extra)


def on_two_ranks(folder: Path, *words: str, extra: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """`accelerate launch` as a CPU machine needs it for two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    settings = ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", port]
    return start([*launch, *settings, SCRIPT, *words], folder, extra)


def start(command: list[str], folder: Path, extra: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, output and errors. From another folder, uninstalled: the script finds its package by itself."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(extra or {})}
    with subprocess.Popen(
        command, stdout=PIPE, stderr=PIPE, text=True, cwd=folder, env=environment, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # workers too: killing the launcher alone would leave them
            raise
    return process.returncode, output, errors
