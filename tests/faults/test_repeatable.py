"""F23: the same configuration gives the same losses and weights, whatever the hash seed and the number of workers."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support.fault_runs import Workplace, Zygote, losses, weights
from tests.support.training_runs import launch
from train.data.tokenize_workers import CHUNK_ROWS, ROWS_ALONE

STEPS = 3


def test_hash_seed_and_workers_change_nothing(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"  # more than are tokenised without workers
    lines = [{"question": f"{i} + {i}?", "answer": f"{2 * i}"} for i in range(ROWS_ALONE + 2 * CHUNK_ROWS)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def arguments(name: str, workers: int) -> list[str]:
        options = {
            "data.train": json.dumps([{"path": str(rows), "format": "qa"}]),
            "data.cache_folder": tmp_path / f"cache of {name}",
            "data.workers": workers,
            "duration.max_steps": STEPS,
        }
        return workplace.arguments(tmp_path / name, **options)

    for name in ("once", "again"):
        processes = zygote.run(arguments(name, 0), tmp_path / f"{name}.log")
        assert processes.codes == [0], processes.output
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"  # the others run with another, or a random one
    done = launch(arguments("elsewhere", 2), ACCELERATE_USE_CPU="true", PYTHONHASHSEED=seed)
    assert done.returncode == 0, done.stderr
    for name in ("again", "elsewhere"):
        assert losses(tmp_path / name) == losses(tmp_path / "once"), name
        assert weights(tmp_path / name, STEPS) == weights(tmp_path / "once", STEPS), name
