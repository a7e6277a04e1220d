"""Hyperparameter search with the tiny model: two workers against one, and TPE with halving against a grid.

    python benchmarks/search.py [workers | steps] [SEED ...]

workers (8 minutes on an idle machine): trains the grid's 16 trials with two workers, with one, and with two again.

steps (3 minutes): 16 trials of TPE with halving for each seed (0, 1 and 2) over the ranges that the grid spans; counts
the steps until one is as good as the grid's best. Losses and steps depend neither on the load of the machine nor on how
a trial is started: here two seeds at once, with trials forked from a process that has its libraries imported.

Without a word, both.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

RECIPE = [
    *("recipes/sft-full.yaml", "recipes/cpu.yaml", "--duration.max_steps", "36", "--duration.max_epochs", "20"),
    *("--validation.every_steps", "4", "--validation.max_rows", "0", "--validation.samples", "0"),
    *("--data.validation_fraction", "0.2", "--watch.tensorboard", "false"),
]
GRID = {
    "method": "grid",
    "parameters": {"optim.learning_rate": [1e-4, 1e-3, 1e-2, 1e-1], "optim.beta1": [0.5, 0.7, 0.9, 0.95]},
}
TPE = {
    "method": "tpe",
    "pruner": "halving",
    "trials": 16,
    "parameters": {
        "optim.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "optim.beta1": {"low": 0.5, "high": 0.95, "step": 0.05},
    },
}


@dataclass(frozen=True)
class Outcome:
    """course: (steps trained so far, best loss so far) after each start of a trial."""

    seconds: float
    course: list[tuple[int, float]]

    def steps_to(self, loss: float) -> int | None:
        return next((steps for steps, best in self.course if best <= loss), None)


def search(folder: Path, name: str, space: dict[str, object], workers: int = 1, warm: bool = False) -> Outcome:
    """One search, by what it says about each trial. warm: its trials need not import their libraries."""
    study, file = folder / name, folder / f"{name}.yaml"
    file.write_text(json.dumps(space), encoding="utf-8")
    program = [str(Path(__file__).resolve()), "warm"] if warm else ["-m", "train.search"]
    command = [sys.executable, *program, *RECIPE, "--space", str(file), "--study", str(study)]
    started = time.perf_counter()
    said = subprocess.run(
        [*command, "--workers", str(workers)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, text=True, check=True,
    ).stderr  # fmt: skip
    seconds, steps, course = time.perf_counter() - started, {}, []
    for line in said.splitlines():
        if found := re.match(r"\[\d+/\d+\] trial (\d+): .* (\d+) steps? in ", line):
            steps[found[1]] = int(found[2])
            best = re.search(r"; best (\S+) \(trial", line)
            course.append((sum(steps.values()), float(best[1]) if best else math.inf))
    return Outcome(seconds, course)


def compare_workers(folder: Path) -> Outcome:
    """The grid on two workers, on one, and on two again, so that a machine that changes its speed is seen."""
    print(f"load before the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    before, one, after = (search(folder, f"grid-{k}", GRID, workers) for k, workers in enumerate((2, 1, 2)))
    assert before.course[-1] == one.course[-1] == after.course[-1]
    print(
        f"16 trials: {before.seconds:.0f} s with two workers, {one.seconds:.0f} with one, {after.seconds:.0f} with two"
    )
    print(f"two workers: {2 * one.seconds / (before.seconds + after.seconds):.2f} x as fast as one", flush=True)
    return one


def compare_steps(folder: Path, grid: Outcome | None, seeds: Sequence[int]) -> None:
    """TPE with halving against the grid."""
    with ThreadPoolExecutor(2) as two:
        grid = grid or search(folder, "grid", GRID, warm=True)
        found = two.map(lambda seed: search(folder, f"tpe-{seed}", {**TPE, "seed": seed}, warm=True), seeds)
        steps, loss = grid.course[-1]
        print(f"grid: {steps} steps, best validation loss {loss:.4g}", flush=True)
        reached = []
        for seed, outcome in zip(seeds, found, strict=True):
            total, best = outcome.course[-1]
            reached.append(outcome.steps_to(loss))
            when = f"as good as the grid after {reached[-1]}" if reached[-1] else "not as good as the grid"
            print(f"TPE with halving, seed {seed}: {total} steps ({total / steps:.0%}), {best:.4g}; {when}", flush=True)
    soon = sum(count is not None and count <= steps / 2 for count in reached)
    print(f"{soon} of {len(seeds)} seeds are as good as the grid in half of its steps")


def warm(words: Sequence[str]) -> int:
    """`python -m train.search`, but trials are forked."""
    sys.path.insert(0, str(ROOT))
    from tests.support.fault_runs import Zygote
    from tests.support.searches import WarmStarter
    from train.search.__main__ import main

    return main(words, starter=WarmStarter(zygote=Zygote()))


def main() -> None:
    what = [word for word in sys.argv[1:] if not word.isdecimal()] or ["workers", "steps"]
    seeds = [int(word) for word in sys.argv[1:] if word.isdecimal()] or [0, 1, 2]
    folder = ROOT / "runs" / "benchmark-search"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    grid = compare_workers(folder) if "workers" in what else None
    if "steps" in what:
        compare_steps(folder, grid, seeds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["warm"]:
        os._exit(warm(sys.argv[2:]))
    main()
