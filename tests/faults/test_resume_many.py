"""With more than two ranks a sum depends on the order of adding: a resumed run keeps to it."""

from __future__ import annotations

from pathlib import Path

from tests.support.fault_runs import STEPS, Workplace, Zygote, losses, weights
from tests.support.many_runs import start


def test_four_ranks_stopped_twice(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    start(zygote, workplace.arguments(whole), tmp_path / "whole", "ddp", 4)
    for stop in (3, 7):
        (run / "STOP").parent.mkdir(exist_ok=True)
        orders = [{"at": "train.engine.loop:Loop._update", "nth": stop, "do": f"touch {run / 'STOP'}"}]
        start(zygote, workplace.arguments(run), tmp_path / f"until-{stop}", "ddp", 4, orders)
    start(zygote, workplace.arguments(run), tmp_path / "rest", "ddp", 4)
    assert max(losses(run)) == STEPS
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)
