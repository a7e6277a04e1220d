"""F7: a rank that never gets to the collective that the others wait in is named, with all stacks, and the run ends."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests.support.fault_runs import STEPS, Workplace, Zygote, finished, status, until

HANG_SECONDS = 4
LOOP = "train.engine.loop:Loop"
WAITING = ("all_reduce", "_engine_run_backward", "_distributed_broadcast_coalesced")
# (what rank 1 calls at step 5, what it does instead, the phase it is in, where its main thread is seen)
HANGS = {
    "asleep before the step's collective": (f"{LOOP}._agree", "sleep 1000", "data", "loop.py"),
    "asleep while others wait in backward": (
        "train.objectives.causal_lm:CausalLM.loss",
        "sleep 1000",
        "forward",
        "loop.py",
    ),
    "Python blocked, in the midst of a step": (f"{LOOP}._update", "freeze 1000", "agreeing", None),
}


@pytest.mark.parametrize("case", HANGS)
def test_the_stuck_rank_is_told_from_those_that_wait(
    case: str, zygote: Zygote, workplace: Workplace, tmp_path: Path
) -> None:
    at, action, phase, place = HANGS[case]
    run, moment = tmp_path / "run", tmp_path / "moment"
    # The later order acts first. Before Python is blocked, after which nothing is said, there is time to say where.
    actions = [action, *(["sleep 3"] if action.startswith("freeze") else []), f"touch {moment}"]
    orders = [{"at": at, "nth": 5, "rank": 1, "do": what} for what in actions]
    arguments = workplace.arguments(run, **{"run.hang_seconds": HANG_SECONDS})
    with contextlib.closing(zygote.start(arguments, tmp_path / "log", "ddp", orders)) as processes:
        until(moment.exists)
        began = time.monotonic()
        until(lambda: status(run)["state"] == "failed")
        seconds = time.monotonic() - began
        codes = processes.wait(10)
    assert codes == [70, None if action.startswith("freeze") else 70], processes.output
    assert HANG_SECONDS <= seconds < HANG_SECONDS + 5
    said = status(run)
    assert (said["rank"], said["exit_code"]) == (1, 70)
    assert f"rank 1 hangs in `{phase}`" in said["reason"]
    assert "waiting: rank 0." in said["reason"]
    assert (place or "does not respond") in said["reason"]
    assert said["reason"] in processes.output
    for rank in (0, 1):
        _, stacks = processes.output.split(f"stacks of rank {rank}:\n")
        stacks = stacks.partition("stacks of rank")[0]
        assert any(name in stacks for name in (["inject.py"] if rank else WAITING)), stacks
    assert said["step"] in (finished(run)[-1], finished(run)[-1] + 1)


def test_slow_ranks_are_left_alone(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    """Long before the first step, in a save, and altogether: none of it is a hang."""
    run = tmp_path / "run"
    orders = [
        {"at": "train.checkpoint.manager:Checkpoints.resume", "rank": 1, "do": "sleep 4"},
        {"at": "train.checkpoint.commit:sync_tree", "nth": 2, "rank": 0, "do": "sleep 4"},
        {"at": f"{LOOP}._update", "nth": 0, "rank": 1, "do": "sleep 0.4"},
    ]
    arguments = workplace.arguments(run, **{"run.hang_seconds": 2})
    processes = zygote.run(arguments, tmp_path / "log", "ddp", orders)
    assert processes.codes == [0, 0], processes.output
    assert (status(run)["state"], status(run)["step"]) == ("finished", STEPS)
    assert not (run / "ranks").exists()


def test_who_keeps_a_checkpoint_waiting_is_named(zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    """All main threads wait for those that write; one of these sleeps, and the other waits for it."""
    run = tmp_path / "run"
    orders = [
        {"at": "train.failure.hang:SLOW", "do": "set 2"},  # in place of 40 seconds
        {"at": "train.checkpoint.commit:sync_tree", "nth": 2, "rank": 0, "do": "sleep 1000"},
    ]
    arguments = workplace.arguments(run, **{"run.hang_seconds": HANG_SECONDS})
    processes = zygote.run(arguments, tmp_path / "log", "ddp", orders)
    assert processes.codes == [70, 70], processes.output
    said = status(run)
    assert (said["rank"], said["exit_code"], said["step"]) == (0, 70, 6)
    assert "rank 0 hangs in `saving` at train/checkpoint/commit.py:" in said["reason"]
    assert "waiting: rank 1." in said["reason"]
