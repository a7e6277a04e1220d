"""F9: the disk fills up during a save: exit 73, the message says where and how much is free, and nothing is lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.fault_runs import Workplace, Zygote, finished, leftovers, losses, small_disk, status, weights

PREPARE = "train.checkpoint.commit:_prepare"


def assert_refused(output: str, run: Path) -> None:
    """The message a user sees."""
    assert f"Cannot write the checkpoint {run / 'checkpoints' / 'step-000004'}" in output
    assert re.search(r"[0-9,]+ bytes are free", output)
    assert "Traceback" not in output


def test_the_disk_fills_up_during_a_save(zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "16m") as mounted:
        run, ballast = disk / "run", disk / "ballast"
        action = f"fill {ballast}" if mounted else "limit 4096"  # without root: a limit of this process stands for it
        orders = [{"at": PREPARE, "nth": 2, "when": "after", "do": what} for what in (action, "sleep 2")]
        processes = zygote.run(workplace.arguments(run), tmp_path / "full", orders=orders)
        assert processes.codes == [73], processes.output
        assert_refused(processes.output, run)
        assert max(losses(run)) > 4, "training waited"
        assert finished(run) == [2]
        assert leftovers(run) == []
        ballast.unlink(missing_ok=True)
        processes = zygote.run(workplace.arguments(run), tmp_path / "again")
        assert processes.codes == [0], processes.output
        assert status(run)["state"] == "finished"
        assert losses(run) == losses(reference)
        assert weights(run) == weights(reference)


def test_one_of_two_ranks_cannot_write(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    """Both learn of it between two steps, and leave by the same door."""
    run = tmp_path / "run"
    orders = [{"at": "train.checkpoint.deepspeed_state:write", "nth": 2, "rank": 1, "do": "limit 4096"}]
    processes = zygote.run(workplace.arguments(run), tmp_path / "full", "zero2", orders)
    assert processes.codes == [73, 73], processes.output
    assert_refused(processes.output, run)
    assert finished(run) == [2]
    assert leftovers(run) == []


def test_too_little_space_is_seen_before_writing(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "4m") as mounted:  # one checkpoint takes about 2.6 MB
        if not mounted:
            pytest.skip("may not mount a tmpfs here; unit tests ask the same of a disk that only claims to be small")
        run = disk / "run"
        orders = [{"at": "train.checkpoint.replicated_state:write", "nth": 2, "do": f"touch {tmp_path / 'wrote'}"}]
        processes = zygote.run(workplace.arguments(run), tmp_path / "log", orders=orders)
        assert processes.codes == [73], processes.output
        assert_refused(processes.output, run)
        assert "are needed" in processes.output
        assert not (tmp_path / "wrote").exists()
        assert finished(run) == [2]
        assert leftovers(run) == []
        assert status(run)["exit_code"] == 73
