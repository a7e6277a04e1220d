"""Seconds from the start of the command to the end of the first optimizer step, with a warm token cache.

    python benchmarks/time_to_first_step.py [--rows 100000] [--repeats 3]

Instruction rows are made with a seed, the cache is filled by one run, and then the same command is started again:
reading, split, overlap, three epochs planned, model, first step, as in any run. The model is tiny and random, so that
what counts is the way to the step and not the step. The last line is `seconds=... target=20`; the exit code is 1 above
the target.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TARGET = 20.0
PATIENCE = 1800.0  # seconds for one run; the first tokenises all rows
WORDS = (
    "the a of to and in on is was model data train token step learn word answer question long short write explain list"
    " give what how why number city river blue red old new time people work year day house book music north water"
).split()


class Times(NamedTuple):
    """Seconds since the command was started. ready: all loaded and planned. first_step: one update done."""

    ready: float
    first_step: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zerotune-benchmark-") as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", given.rows)
        cold = run(folder)
        warm = [run(folder) for _ in range(given.repeats)]
    return report(given.rows, cold, warm)


def write_rows(path: Path, count: int) -> None:
    """Instructions, a third with an input; answers of log-normal length."""
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = {
                "instruction": f"{number}: {text(draw.randint(4, 20))}?",
                "input": "" if number % 3 else text(draw.randint(4, 20)),
                "output": text(min(200, 1 + int(draw.lognormvariate(3.5, 0.8)))),
            }
            file.write(json.dumps(row) + "\n")


def run(folder: Path) -> Times:
    """One run in a fresh run folder, ended after its first step."""
    run_folder = folder / "run"
    recipe = {
        "run": {"folder": str(run_folder)},
        "model": {"path": str(ROOT / "examples/models/tiny-qwen2"), "init": "random"},
        "data": {
            "train": [{"path": str(folder / "rows.jsonl"), "format": "io"}],
            "validation_fraction": 0.02,
            "max_length_tokens": 512,
            "cache_folder": str(folder / "cache"),
        },
        "duration": {"max_epochs": 3},
        "validation": {"at_start": False},  # it measures the model, not the way to it
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    accelerate = [str(Path(sys.executable).parent / "accelerate"), "launch"]
    command = [*accelerate, "--config_file", str(ROOT / "accelerate_configs/cpu.yaml"), str(ROOT / "train/main.py")]
    with (folder / "log.txt").open("w") as log:
        began = time.time()
        process = subprocess.Popen(
            [*command, "--config", str(path)], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            ready, first_step = watch(process, run_folder / "metrics.jsonl", began + PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if first_step is None:
        sys.exit(f"no first step; the run said:\n{(folder / 'log.txt').read_text()[-4000:]}")
    shutil.rmtree(run_folder)
    return Times(ready - began, first_step - began)


def watch(process: subprocess.Popen[bytes], metrics: Path, deadline: float) -> tuple[float, float | None]:
    """When the run was ready and when its first step was done, by the times that it wrote itself."""
    while process.poll() is None and time.time() < deadline:
        lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
        whole = [json.loads(line) for line in lines if line.endswith("\n")]
        done = [line["time"] for line in whole if "train/loss" in line]
        if done:
            return whole[0]["time"], done[0]
        time.sleep(0.05)
    return 0.0, None


def report(rows: int, cold: Times, warm: list[Times]) -> int:
    seconds = statistics.median(times.first_step for times in warm)
    print(f"{rows:,} rows, {len(os.sched_getaffinity(0))} cores\n")
    print(f"{'seconds to':14}{'ready':>10}{'first step':>12}")
    for name, times in (("empty cache", cold), *((f"warm {n}", times) for n, times in enumerate(warm, start=1))):
        print(f"{name:14}{times.ready:10.1f}{times.first_step:12.1f}")
    print(f"\nseconds={seconds:.1f} target={TARGET:g}")
    return int(seconds > TARGET)


if __name__ == "__main__":
    sys.exit(main())
