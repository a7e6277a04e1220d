"""F3: a rank is killed at every point of a save; there is always a checkpoint, and the run goes on from the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fault_runs import Workplace, Zygote, finished, leftovers, losses, status, weights
from tests.support.save_points import COMMIT, POINTS, SINGLE


def test_killed_at_every_point_of_a_save(zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for life, (point, newest) in enumerate(SINGLE):
        orders = [{**point, "do": "SIGKILL"}]
        processes = zygote.run(workplace.arguments(run), tmp_path / f"life{life}", orders=orders)
        assert processes.codes == [-9], (point, processes.output)
        assert finished(run)[-1] == newest, point
        resumed = SINGLE[life - 1][1] if life else 0
        assert status(run)["state"] == "running"
        assert resumed <= status(run)["step"] <= newest + 4  # written once a second
        if life:
            assert f"resumed from {run / 'checkpoints' / 'step-'}" in processes.output
    assert leftovers(run) == [
        ".trash-step-000002"
    ]  # of the last kill; those of the others were removed by the next life
    processes = zygote.run(workplace.arguments(run), tmp_path / "last")
    assert processes.codes == [0], processes.output
    assert leftovers(run) == []
    assert losses(run) == losses(reference)
    assert weights(run) == weights(reference)


def test_killed_by_a_step_while_a_checkpoint_is_written(
    zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    orders = [
        {"at": f"{COMMIT}:_digest_share", "nth": 2, "do": "sleep 60"},
        {"at": "train.engine.loop:Loop._update", "nth": 6, "do": "SIGKILL"},
    ]
    processes = zygote.run(workplace.arguments(run), tmp_path / "killed", orders=orders)
    assert processes.codes == [-9], processes.output
    assert max(losses(run)) == 5  # the step after the one whose checkpoint was being written
    assert finished(run) == [2]
    assert leftovers(run) == ["step-000004.tmp"]
    processes = zygote.run(workplace.arguments(run), tmp_path / "again")
    assert processes.codes == [0], processes.output
    assert f"resumed from {run / 'checkpoints' / 'step-000002'}" in processes.output
    assert leftovers(run) == []
    assert losses(run) == losses(reference)
    assert weights(run) == weights(reference)


@pytest.mark.parametrize("kind", ["ddp", "zero2"])
def test_one_rank_killed_in_a_save_of_two(kind: str, zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    """Either one, at every point of its part."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    for life, (point, newest) in enumerate(POINTS[kind]):
        orders = [{**point, "do": "SIGKILL"}]
        processes = zygote.run(workplace.arguments(run), tmp_path / f"life{life}", kind, orders)
        assert processes.codes[point["rank"]] == -9, (point, processes.output)
        assert processes.codes[1 - point["rank"]] != 0, (point, processes.output)
        assert finished(run)[-1] == newest, point
        assert leftovers(run) == ([] if newest > 2 else ["step-000004.tmp"]), point
    assert {point["rank"] for point, _ in POINTS[kind]} == {0, 1}
    processes = zygote.run(workplace.arguments(run), tmp_path / "again", kind)
    assert processes.codes == [0, 0], processes.output
    assert f"resumed from {run / 'checkpoints' / 'step-000004'}" in processes.output
    assert leftovers(run) == []
    assert zygote.run(workplace.arguments(whole), tmp_path / "whole", kind).codes == [0, 0]
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)
