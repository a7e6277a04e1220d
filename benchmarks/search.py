"""Hyperparameter search with the tiny model: two workers against one, and TPE with halving against a grid.

    python benchmarks/search.py [FOLDER]

Trains the grid's 16 trials with one worker and with two, then 24 trials of TPE with halving with one worker over the
ranges that the grid spans, and counts the steps until it is as good as the grid's best. Steps and losses do not depend
on the load of the machine; the times do.
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
    "trials": 24,
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


def search(folder: Path, name: str, space: dict[str, object], workers: int) -> Outcome:
    """One search, by what it says about each trial."""
    study, file = folder / name, folder / f"{name}.yaml"
    file.write_text(json.dumps(space), encoding="utf-8")
    command = [sys.executable, "-m", "train.search", *RECIPE, "--space", str(file), "--study", str(study)]
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


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs" / "benchmark-search")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"load before the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    one, two, tpe = (
        search(folder, name, space, workers)
        for name, space, workers in (("grid-one", GRID, 1), ("grid-two", GRID, 2), ("tpe", TPE, 1))
    )
    for name, outcome in (("grid, one worker", one), ("grid, two workers", two), ("TPE with halving", tpe)):
        steps, best = outcome.course[-1]
        print(f"{name:<20}{outcome.seconds:7.0f} s{steps:7,} steps   best validation loss {best:.4g}")
    steps, best = one.course[-1]
    reached = tpe.steps_to(best)
    print(f"two workers: {one.seconds / two.seconds:.2f} x as fast as one")
    print(f"TPE has the grid's best loss after {reached} steps: {(reached or math.nan) / steps:.0%} of the grid's")


if __name__ == "__main__":
    main()
