"""F6 and F8: a rank that raises or is killed ends the run at once; why is said first, and stands in status.json."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.fault_runs import Workplace, Zygote, finished, launch_ranks, leftovers, status, until
from tests.support.inject import VARIABLE

SECONDS = 10.0  # from the failure to the launcher's last word, however long the start took
DATA = "train.data.schedule:rank_batches"


def processes_with(mark: str) -> list[psutil.Process]:
    """Living processes whose injections name `mark`, in whatever session they are."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark in process.environ().get(VARIABLE, ""):
                found.append(process)
    return found


def launched(orders: list[dict[str, Any]], workplace: Workplace, folder: Path) -> tuple[Path, str, float]:
    """The folder and output of a run of two ranks that fails, and the seconds from then on; the first order must act
    when `folder/moment` is made.
    """
    run, moment, log = folder / "run", folder / "moment", folder / "log"
    touch = {**orders[0], "do": f"touch {moment}"}  # the later order acts first
    launcher = launch_ranks(workplace.arguments(run), log, [*orders, touch])
    try:
        until(moment.exists)
        until(lambda: not processes_with(str(moment)))
        assert launcher.wait(10) != 0, log.read_text()
    finally:
        for process in processes_with(str(moment)):
            process.kill()
    return run, log.read_text(), log.stat().st_mtime - moment.stat().st_mtime


@pytest.mark.parametrize("ending_seconds", [0, 6])
def test_a_rank_that_raises(ending_seconds: int, workplace: Workplace, tmp_path: Path) -> None:
    """It stays the one to blame for the launcher, however long it takes to end on a busy machine."""
    slow = [{"at": "logging:shutdown", "rank": 1, "do": f"sleep {ending_seconds}"}] if ending_seconds else []
    orders = [{"at": DATA, "nth": 5, "rank": 1, "do": "raise no more rows"}, *slow]
    run, text, seconds = launched(orders, workplace, tmp_path)
    assert ending_seconds <= seconds < ending_seconds + SECONDS, text
    said = status(run)
    assert (said["state"], said["rank"], said["exit_code"], said["step"]) == ("failed", 1, 1, 4)
    assert said["reason"] == "ValueError: no more rows"
    before, _, after = text.partition("[rank 1] failed after step 4, in `data`:\n")
    assert "Traceback" not in before
    assert "rror" not in before
    own, _, cascade = after.partition("[rank1]: ValueError: no more rows\n")  # torch puts the rank before each line
    assert own.startswith("[rank1]: Traceback (most recent call last):\n")
    assert "in walk\n" in own
    assert f"ended because rank 1 failed first; the reason is in {run / 'status.json'}" in cascade
    assert "closed by peer" not in text
    assert re.search(
        r"Root Cause(.|\n)*rank      : 1(.|\n)*ValueError: no more rows", cascade
    )  # the launcher's last words
    assert finished(run) == [2, 4]


def test_a_rank_that_is_killed(workplace: Workplace, tmp_path: Path) -> None:
    orders = [
        {"at": "train.engine.loop:Loop._update", "nth": 5, "rank": 1, "do": "SIGKILL"},
        {
            "at": DATA,
            "nth": 5,
            "rank": 1,
            "do": "sleep 3",
        },  # steps may be faster than its status, written once a second
    ]
    run, text, seconds = launched(orders, workplace, tmp_path)
    assert seconds < SECONDS, text
    said = status(run)
    assert (said["state"], said["rank"], said["exit_code"], said["step"]) == ("failed", 1, 1, 4)
    assert said["reason"].startswith("rank 1 (process ")
    assert "was killed; last seen after step 4, in `" in said["reason"]
    assert said["reason"] in text
    assert "closed by peer" not in text
    assert finished(run)[-1] in (2, 4)  # the newest one may have been under way


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_without_noticing_is_ended(rank: int, zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    """On GPUs a collective does not notice that a rank is gone: here the other one sleeps instead."""
    run = tmp_path / "run"
    orders = [
        {"at": DATA, "nth": 5, "rank": rank, "do": "SIGKILL" if rank else "raise no more rows"},
        {"at": DATA, "nth": 5, "rank": 1 - rank, "do": "sleep 1000"},
    ]
    processes = zygote.run(workplace.arguments(run), tmp_path / "log", "ddp", orders)
    codes = [-9, 1][::-1] if rank else [1, 1]
    assert processes.codes == codes, processes.output
    assert (status(run)["state"], status(run)["rank"]) == ("failed", rank)
    assert f"ended because rank {rank} failed first" in processes.output


def test_an_error_is_told_before_a_checkpoint_under_way_is_waited_for(
    zygote: Zygote, workplace: Workplace, tmp_path: Path
) -> None:
    """That is no hang, others are not ended before it is committed, and it is not told twice."""
    run, moment = tmp_path / "run", tmp_path / "moment"
    orders = [
        {"at": "train.failure.watchdog:PATIENCE_SECONDS", "do": "set 2"},
        {"at": "train.checkpoint.commit:sync_tree", "nth": 2, "rank": 0, "do": "sleep 15"},
        {"at": DATA, "nth": 5, "rank": 1, "do": "raise no more rows"},
        {"at": DATA, "nth": 5, "rank": 1, "do": f"touch {moment}"},
    ]
    arguments = workplace.arguments(run, **{"run.hang_seconds": 4})
    with contextlib.closing(zygote.start(arguments, tmp_path / "log", "ddp", orders)) as processes:
        until(moment.exists)
        until(lambda: status(run)["state"] == "failed", 5)
        until(lambda: "ValueError: no more rows" in processes.output, 5)
        assert (status(run)["rank"], status(run)["reason"]) == (1, "ValueError: no more rows")
        assert finished(run) == [2]
        assert processes.wait() == [1, 1], processes.output
    assert processes.output.count("ValueError: no more rows") == 1
    assert "ended because rank 1 failed first" in processes.output
    assert status(run)["reason"] == "ValueError: no more rows"
    assert finished(run) == [2, 4]
    assert leftovers(run) == []
