"""Checkpoints that are written while training goes on: a slow disk, a stop, an error in the midst of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.fault_runs import Workplace, Zygote, finished, leftovers, losses, status, weights, world
from train.checkpoint import manifest

COMMIT = "train.checkpoint.commit"
LATER = {"at": f"{COMMIT}:sync_tree", "nth": 0, "do": "sleep 2"}  # a slow disk, long after all was copied


def done_at(run: Path) -> dict[int, float]:
    """step -> when it was done, by the clock of the files."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["time"] for line in lines if "train/loss" in line}


def listed_at(run: Path, step: int) -> float:
    """When the manifest of a checkpoint was written."""
    return (run / "checkpoints" / f"step-{step:06d}" / manifest.NAME).stat().st_mtime


@pytest.mark.parametrize("kind", ["single", "zero2"])
def test_training_goes_on_beside_a_slow_disk(kind: str, zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    """Each checkpoint is that of its step to the last bit, and is there before the next one begins."""
    writer = f"train.checkpoint.{'replicated' if kind == 'single' else 'deepspeed'}_state:write"
    slow = [{"at": writer, "nth": 0, "do": "sleep 2"}]
    for save, step in ((1, 3), (2, 5)):  # it writes only when the step after was trained
        trained = tmp_path / f"trained{step}"
        slow.append({"at": writer, "nth": save, "do": f"await {trained}"})
        slow.append({"at": "train.engine.loop:Loop._update", "nth": step, "when": "after", "do": f"touch {trained}"})
    options = {"duration.max_steps": 6, "checkpoint.keep_last": 9}
    for name, orders, asynchronous in (("waiting", None, "false"), ("beside", slow, "true")):
        choice = {**options, "checkpoint.asynchronous": asynchronous}
        processes = zygote.run(workplace.arguments(tmp_path / name, **choice), tmp_path / name, kind, orders)
        assert processes.codes == [0] * world(kind), processes.output
    waiting, beside = tmp_path / "waiting", tmp_path / "beside"
    assert finished(waiting) == finished(beside) == [2, 4, 6]
    for step in (2, 4, 6):
        assert weights(beside, step) == weights(waiting, step)
    assert losses(beside) == losses(waiting)
    done = done_at(beside)
    assert listed_at(beside, 2) < done[5], "the next save did not wait for this one"


def test_asked_to_stop_while_a_checkpoint_is_written(
    zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path
) -> None:
    """Both that one and the one of the stop are there when the process ends."""
    run = tmp_path / "run"
    orders = [LATER, {"at": f"{COMMIT}:sync_tree", "nth": 2, "do": "SIGTERM"}]
    processes = zygote.run(workplace.arguments(run), tmp_path / "stopped", orders=orders)
    assert processes.codes == [0], processes.output
    said = status(run)
    assert (said["state"], said["reason"]) == ("preempted", "SIGTERM")
    assert said["step"] > 4, "training waited"
    assert finished(run) == [4, said["step"]]
    assert leftovers(run) == []
    processes = zygote.run(workplace.arguments(run), tmp_path / "again")
    assert processes.codes == [0], processes.output
    assert losses(run) == losses(reference)
    assert weights(run) == weights(reference)


def test_an_error_beside_training_ends_it_at_the_next_step(
    zygote: Zygote, workplace: Workplace, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    orders = [{"at": f"{COMMIT}:_digest_share", "nth": 2, "do": "raise broken memory"}]
    processes = zygote.run(workplace.arguments(run), tmp_path / "log", orders=orders)
    assert processes.codes == [1], processes.output
    assert processes.output.rstrip().endswith("ValueError: broken memory")
    said = status(run)
    assert (said["state"], said["reason"], said["exit_code"]) == ("failed", "ValueError: broken memory", 1)
    assert said["step"] in (4, 5, 6)  # 6 is the next save, which asks for it in any case
    assert finished(run) == [2]
    assert leftovers(run) == []
