"""F22: clocks and modification times say nothing about which checkpoint is the newest."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.support.fault_runs import Workplace, Zygote, finished, losses, weights
from train.checkpoint import commit

DAY = 86_400.0


def date(folder: Path, moment: float) -> None:
    """Give a folder and all in it that modification time."""
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (moment, moment))


def test_the_newest_is_the_one_with_the_most_steps(
    zygote: Zygote, workplace: Workplace, reference: Path, tmp_path: Path
) -> None:
    """The clock has jumped back by a day since step 4 was saved, and step 6 has lost its date."""
    run = tmp_path / "run"
    orders = [{"at": "train.engine.loop:Loop._update", "nth": 8, "do": "SIGKILL"}]
    words = workplace.arguments(run, checkpoint__asynchronous="false")  # step 6 is written before the kill
    processes = zygote.run(words, tmp_path / "first", orders=orders)
    assert processes.codes == [-9], processes.output
    assert finished(run)[-2:] == [4, 6]
    date(commit.folder_of(run / "checkpoints", 4), time.time() + DAY)
    date(commit.folder_of(run / "checkpoints", 6), DAY)
    processes = zygote.run(workplace.arguments(run), tmp_path / "second")
    assert processes.codes == [0], processes.output
    assert "step-000006 (step 6)" in processes.output
    assert finished(run) == finished(reference)
    assert losses(run) == losses(reference)
    assert weights(run) == weights(reference)
