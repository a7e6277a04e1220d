"""Training jobs for the tests: their command lines, what slows them down, and what they must end as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.fault_runs import VARIABLE, Workplace, leftovers, losses, status, weights
from tests.support.training_runs import ROOT


def plugged(order: dict[str, Any]) -> dict[str, str]:
    """Variables under which a job's processes follow the order (tests/support/inject.py)."""
    return {VARIABLE: json.dumps([order]), "PYTHONPATH": str(ROOT / "tests" / "support" / "plug")}


def slow(seconds: float, at: str = "train.engine.loop:Loop._update") -> dict[str, str]:
    """Variables under which each step takes longer, so that something can happen in between."""
    return plugged({"at": at, "nth": 0, "do": f"sleep {seconds}"})


def job_script(workplace: Workplace, run: Path, *chosen: str, **options: object) -> list[object]:
    """`slurm/job.sh` and its words; `options` use __ for the dot."""
    return ["slurm/job.sh", *chosen, workplace.folder / "recipe.yaml", *workplace.arguments(run, **options)]


def steps(run: Path) -> int:
    """How many steps the run has written down."""
    return len(losses(run)) if (run / "metrics.jsonl").exists() else 0


def assert_equal(run: Path, undisturbed: Path) -> None:
    """The run has finished, and every loss and every bit is that of the other."""
    assert status(run)["state"] == "finished"
    assert losses(run) == losses(undisturbed)
    assert weights(run) == weights(undisturbed)
    assert leftovers(run) == []
    assert not (run / "STOP").exists()
