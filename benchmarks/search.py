"""Hyperparameter search with the tiny model: two workers against one, and TPE with halving against a grid.

    python benchmarks/search.py [FOLDER]

Trains the grid's 16 trials with one worker and with two, then 16 trials of TPE with halving with one worker over the
ranges that the grid spans. The steps and losses do not depend on the machine or its load; the times do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from train.search.space import read_space  # noqa: E402
from train.search.study import Study, best  # noqa: E402

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


def search(folder: Path, name: str, space: dict[str, object], workers: int) -> tuple[float, int, float]:
    """(seconds, steps of all trials, best validation loss) of one search."""
    study, file = folder / name, folder / f"{name}.yaml"
    file.write_text(json.dumps(space), encoding="utf-8")
    command = [sys.executable, "-m", "train.search", *RECIPE, "--space", str(file), "--study", str(study)]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--workers", str(workers)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True
    )
    seconds = time.perf_counter() - started
    records = Study(study, read_space(file)).records()
    leader = best(records, 1)
    assert leader is not None
    assert leader.value is not None
    return seconds, sum(record.steps for record in records), leader.value


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs" / "benchmark-search")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    load = os.getloadavg()[0]
    rows = [
        (name, *search(folder, name.replace(",", "").replace(" ", "-"), space, workers))
        for name, space, workers in (
            ("grid, one worker", GRID, 1),
            ("grid, two workers", GRID, 2),
            ("TPE with halving", TPE, 1),
        )
    ]
    print(f"load before the start: {load:.1f} on {os.cpu_count()} cores")
    for name, seconds, steps, loss in rows:
        print(f"{name:<20}{seconds:7.0f} s{steps:7,} steps   best validation loss {loss:.4f}")
    (_, one, grid_steps, grid_loss), (_, two, _, same_loss), (_, _, steps, loss) = rows
    assert grid_loss == same_loss
    print(f"two workers: {one / two:.2f} x as fast; TPE with halving: {steps / grid_steps:.0%} of the grid's steps")


if __name__ == "__main__":
    main()
