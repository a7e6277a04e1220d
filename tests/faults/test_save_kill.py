"""F3: rank 0 is killed at every point of a save; there is always a checkpoint, and the run goes on from the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.runs import Workplace, Zygote, finished, leftovers, losses, status, weights

COMMIT = "train.engine.commit"
# In this order on one run folder: (point, what the newest finished checkpoint is afterwards).
POINTS = (
    ({"at": f"{COMMIT}:_prepare", "nth": 2}, 2),
    ({"at": "train.engine.whole_state:save_file", "nth": 1}, 2),
    ({"at": "train.engine.whole_state:save_file", "nth": 2}, 2),
    ({"at": f"{COMMIT}:_sync_files"}, 2),
    ({"at": f"{COMMIT}:_digest_share"}, 2),
    ({"at": f"{COMMIT}:_write_manifest"}, 2),
    ({"at": f"{COMMIT}:_publish"}, 2),
    ({"at": f"{COMMIT}:_publish", "when": "after"}, 4),
    ({"at": "train.engine.checkpoint:prune"}, 6),
    ({"at": "train.engine.checkpoint:_remove"}, 8),
)


def test_killed_at_every_point_of_a_save(zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for life, (point, newest) in enumerate(POINTS):
        orders = [{**point, "do": "SIGKILL"}]
        processes = zygote.run(workplace.arguments(run), tmp_path / f"life{life}", orders=orders)
        assert processes.codes == [-9], (point, processes.output)
        assert finished(run)[-1] == newest, point
        resumed = POINTS[life - 1][1] if life else 0
        assert (status(run)["state"], status(run)["step"]) == ("running", resumed)
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
    run = tmp_path / "run"
    orders = [{"at": f"{COMMIT}:_write_manifest", "nth": 2, "rank": 0, "do": "SIGKILL"}]
    processes = zygote.run(workplace.arguments(run), tmp_path / "killed", kind, orders)
    assert processes.codes[0] == -9, processes.output
    assert processes.codes[1] != 0
    assert finished(run) == [2]
    assert leftovers(run) == ["step-000004.tmp"]
    processes = zygote.run(workplace.arguments(run), tmp_path / "again", kind)
    assert processes.codes == [0, 0], processes.output
    assert "step-000002" in processes.output
    assert leftovers(run) == []
    assert status(run)["state"] == "finished"
