"""The documented command with two real processes gives what one process gives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests import eval_checkpoints

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "eval" / "main.py")
SECONDS = 280  # on a busy machine an import of transformers alone can take a minute


def start(command: list[str], folder: Path) -> tuple[int, str, str]:
    """Exit code, output and errors. From another folder, uninstalled: the script finds its package by itself."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=PIPE, stderr=PIPE, text=True, cwd=folder, env=environment, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # workers too: killing the launcher alone would leave them
            raise
    return process.returncode, output, errors


def on_two_ranks(folder: Path, *words: str) -> tuple[int, str, str]:
    """`accelerate launch` as a CPU machine needs it for two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    settings = ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", port]
    return start([*launch, *settings, SCRIPT, *words], folder)


def compared(value: Any) -> Any:
    """Without what differs by right, and without fp32's last digits."""
    if isinstance(value, dict):
        return {k: compared(v) for k, v in value.items() if k not in ("seconds", "created", "ranks", "out")}
    if isinstance(value, list):
        return [compared(inner) for inner in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    rows = [{"question": f"Which number is {k}?" * (1 + k % 3), "answer": "Paris" * (1 + k % 2)} for k in range(7)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed, name in enumerate(["before", "after"]):
        eval_checkpoints.save(tmp_path / name, seed)
    return "--baseline before --model after --tasks perplexity,qa --data rows.jsonl --max_new_tokens 5".split()


def test_two_ranks_give_what_one_gives(words: list[str], tmp_path: Path) -> None:
    two, two_output, two_errors = on_two_ranks(tmp_path, *words, "--out", "two")
    assert two == 0, two_errors
    one, one_output, one_errors = start([sys.executable, SCRIPT, *words, "--out", "one"], tmp_path)
    assert one == 0, one_errors
    assert one_output.replace("one/", "two/") in two_output
    alone, together = (json.loads((tmp_path / out / "result.json").read_text()) for out in ("one", "two"))
    assert (alone["settings"]["ranks"], together["settings"]["ranks"]) == (1, 2)
    assert compared(alone) == compared(together)
    for path in (tmp_path / "one" / "samples").iterdir():
        alone, together = ((tmp_path / out / "samples" / path.name).read_text() for out in ("one", "two"))
        assert [compared(json.loads(line)) for line in alone.splitlines()] == [
            compared(json.loads(line)) for line in together.splitlines()
        ]


def test_a_mistake_ends_both_ranks_with_its_message(words: list[str], tmp_path: Path) -> None:
    code, _, errors = on_two_ranks(tmp_path, *words, "--data", "qa=nowhere.jsonl")
    assert code != 0
    assert "error: nowhere.jsonl: no such file" in errors
