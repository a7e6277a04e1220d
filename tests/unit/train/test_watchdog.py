"""Who hangs, who failed first, and who only waits: decided from what the ranks last said."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.ranks import Solo, Threads, together
from train import errors
from train.errors import EndedWithError
from train.failure import watchdog
from train.failure.background import Background, GlooGroup
from train.failure.hang import SLOW, StallDetector, find_hanging, main_thread_location
from train.failure.heartbeat import HEARTBEAT, Heartbeat
from train.failure.process import ended, started
from train.failure.rank_status import Failure, RankStatus, RankStatusFolder, current_status
from train.failure.stop import Status, read_status
from train.failure.watchdog import HANG, Watchdog
from zerotune.common.errors import CannotWriteError, UserError

STATUS = RankStatus(0, "host", 1, 1, step=7, phase="data", place=70, beats=700, slow=False, at="train/x.py:1 (f)")


@pytest.mark.parametrize(
    ("changes", "stuck"),
    [
        ([{}, {"place": 71, "phase": "agreeing", "waits": True}, {"place": 71, "waits": True}], [0]),
        ([{"place": 71, "phase": "backward"}, {"phase": "forward"}], [1]),  # who waits in C++ cannot be seen to wait
        ([{"waits": True}, {}], [1]),  # ZeRO-3 waits inside the forward pass too
        ([{"waits": True}, {"waits": True}], [0, 1]),  # different collectives, or the network
        ([{"waits": True}, {"place": 99, "at": ""}], [1]),  # does not respond, however far it was
        ([{}], [0]),
    ],
)
def test_find_hanging_names_the_cause(changes: list[dict[str, object]], stuck: list[int]) -> None:
    statuses = {rank: replace(STATUS, rank=rank, **change) for rank, change in enumerate(changes)}
    ranks, text = find_hanging(statuses, 30.0)
    assert ranks == stuck
    assert text.startswith("After step 7 no rank made progress for 30 s: ")
    for rank, one in statuses.items():
        assert (f"rank {rank} hangs in `{one.phase}`" in text) == (rank in stuck)


def still_for(stillness: StallDetector, statuses: dict[int, RankStatus], most: int) -> int:
    """Seconds until it is too long; `most` if it is not."""
    return next((second for second in range(1, most) if stillness.is_stalled(1.0, lambda: statuses)), most)


@pytest.fixture
def heartbeat() -> Heartbeat:
    """That of this process, in a training step."""
    HEARTBEAT.done(1)
    HEARTBEAT.enter("data")
    return HEARTBEAT


def test_stall_detector_needs_all_ranks_without_progress(heartbeat: Heartbeat) -> None:
    mine, other = STATUS, replace(STATUS, rank=1)
    stillness = StallDetector(0, 10)
    statuses = {0: mine, 1: other}
    assert not stillness.is_stalled(1.0, lambda: statuses)  # sees the last beat
    assert still_for(stillness, statuses, 99) == 10
    heartbeat.beat()
    assert still_for(stillness, statuses, 99) == 11
    heartbeat.beat()
    for _ in range(100):  # this rank waits, and the other works
        statuses[1] = replace(statuses[1], beats=statuses[1].beats + 1)
        assert not stillness.is_stalled(1.0, lambda: statuses)
    assert still_for(stillness, statuses, 99) <= 2 * 10
    heartbeat.beat()
    statuses[1] = replace(statuses[1], slow=True)  # this rank waits for one that saves
    assert still_for(stillness, statuses, 999) == SLOW * 10 + 1
    heartbeat.enter("saving", slow=True)
    statuses[1] = other
    assert still_for(stillness, statuses, 99) == 99


def test_stall_limit_is_longer_before_the_first_step() -> None:
    heartbeat = Heartbeat()
    heartbeat.enter("forward")
    assert heartbeat.slow
    heartbeat.done(1)
    assert not heartbeat.slow
    heartbeat.enter("saving", slow=True)
    assert heartbeat.slow
    assert heartbeat.place == heartbeat.beats == 2


def test_one_failure_is_claimed_as_first(tmp_path: Path) -> None:
    ranks = [RankStatusFolder(tmp_path, rank) for rank in range(3)]
    ranks[0].clear()
    failures = [Failure(rank, 65, f"of rank {rank}") for rank in range(3)]
    assert ranks[0].first() is None
    assert ranks[2].claim(failures[2]) is failures[2]
    assert ranks[0].claim(failures[0]) == failures[2] == ranks[1].first()
    ranks[0].clear()  # the next life of the run
    assert ranks[1].claim(failures[1]) is failures[1]


def test_rank_status_is_read_and_withdrawn(tmp_path: Path) -> None:
    first, second = RankStatusFolder(tmp_path, 0), RankStatusFolder(tmp_path, 1)
    first.clear()
    said = current_status(1)
    second.write(said)
    assert first.read() == {1: said}
    assert not first.has_left(1)
    (first.folder / "rank-00002.json").write_text("")  # is being replaced just now
    assert set(first.read()) == {1}
    second.leave()
    assert first.has_left(1)


def test_ended_distinguishes_reused_process_ids() -> None:
    process = subprocess.Popen(["sleep", "60"])
    start = started(process.pid)
    assert start is not None
    assert not ended(process.pid, start)
    assert ended(process.pid, start + 1)
    process.kill()
    end = time.monotonic() + 10
    while not ended(process.pid, start):  # as a zombie already
        assert time.monotonic() < end
        time.sleep(0.01)
    process.wait()
    assert ended(process.pid, start)


def fail(folder: Path, own: Exception, others: Exception, begun: bool = True) -> list[object]:
    """Two ranks: the second raises its `own` error, the other one that it may come by a moment before."""

    def work(ranks: Threads) -> None:
        with Watchdog(folder, ranks, 60) as dog, dog.first_error():
            if begun:
                dog.begin(3)
            ranks.barrier()
            if ranks.index == 0:
                raise others
            time.sleep(0.3)
            raise own

    return list(together(2, work))


@pytest.mark.parametrize("broken", [RuntimeError("Connection closed by peer"), CannotWriteError("rank 1 failed")])
def test_watchdog_records_the_first_error_and_ends_others(
    broken: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 60.0)  # this process is not to be ended
    monkeypatch.setattr(watchdog, "PATIENCE_SECONDS", 0.2)  # nor does it end: the ranks are threads
    own = CannotWriteError("the disk is full")
    own.__cause__ = OSError("No space left on device")
    ended_with, error = fail(tmp_path, own, broken)
    assert error is own
    assert isinstance(ended_with, EndedWithError)
    assert ended_with.exit_code == 73
    assert "rank 1 failed first" in str(ended_with)
    said = json.loads((tmp_path / "status.json").read_text())
    assert (said["state"], said["rank"], said["exit_code"], said["reason"]) == ("failed", 1, 73, "the disk is full")


def test_early_failure_leaves_the_run_folder_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 60.0)
    monkeypatch.setattr(watchdog, "PATIENCE_SECONDS", 0.2)
    for name in ("status.json", "ranks/rank-00000.stacks", "ranks/first-failure.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name} of the start before")
    before = contents(tmp_path)
    ended_with, error = fail(tmp_path, UserError("model.path: mistyped"), RuntimeError("broken"), begun=False)
    assert str(error) == "model.path: mistyped"
    assert str(ended_with) == "ended because rank 1 failed first; see its message"
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_watchdog_updates_the_step_in_status_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.02)
    synced: list[int] = []
    status = Status(tmp_path)
    with Watchdog(tmp_path, Solo(), None, status) as dog:
        dog.begin(5)
        monkeypatch.setattr(os, "fsync", synced.append)
        for step in (6, 7):
            HEARTBEAT.done(step)
            end = time.monotonic() + 10
            while read_status(tmp_path)["step"] != step:
                assert time.monotonic() < end
                time.sleep(0.01)
        assert read_status(tmp_path)["state"] == "running"
        assert not synced  # a step must not wait for the disk
        status.write("finished", 7, "all steps done", 0)
        HEARTBEAT.done(8)
        time.sleep(0.1)
    assert (read_status(tmp_path)["state"], read_status(tmp_path)["step"]) == ("finished", 7)


def test_main_thread_location() -> None:
    at, waits = main_thread_location()
    assert re.fullmatch(r"train/failure/hang\.py:[0-9]+ \(main_thread_location\)", at)
    assert not waits


def test_exit_codes_match_the_documentation(project: Path) -> None:
    table = re.findall(r"^\| ([0-9]+) \|", (project / "docs/resume.md").read_text(encoding="utf-8"), re.MULTILINE)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UserError)]
    own = {kind.exit_code for kind in kinds}
    assert {int(code) for code in table} == own | {os.EX_OK, 1, HANG, 128 + signal.SIGHUP, 128 + signal.SIGINT}


def test_rank_status_is_readable_while_replaced(tmp_path: Path) -> None:
    """Else a rank that is well would be missing where the one to blame is told from the others."""
    statuses = RankStatusFolder(tmp_path, 0)
    statuses.clear()
    statuses.write(current_status(0))
    over = threading.Event()

    def say_again() -> None:
        while not over.is_set():
            statuses.write(current_status(0))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(say_again)
        found = [list(RankStatusFolder(tmp_path, 1).read()) for _ in range(2000)]
        over.set()
    assert found == [[0]] * 2000
    statuses.leave()
    assert not statuses.folder.exists()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes with which this process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def test_hang_ends_the_run_without_the_status_folder(
    ends: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody removed it. The stacks then go where errors go, which is not emptied for them."""
    status = Status(tmp_path)
    status.begin(0)
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as errors_go_here:
        errors_go_here.write("what was said before\n")
        errors_go_here.flush()
        monkeypatch.setattr(sys, "__stderr__", errors_go_here)
        Watchdog(tmp_path, Solo(), 60, status)._declare_hang(61.0)
    assert ends == [HANG]
    said = json.loads((tmp_path / "status.json").read_text())
    assert (said["state"], said["rank"], said["exit_code"]) == ("failed", 0, HANG)
    assert "After step" in said["reason"]
    text = log.read_text()
    assert text.startswith("what was said before\n")
    assert "most recent call first" in text


def test_hang_ends_the_run_despite_other_errors(
    ends: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "find_hanging", lambda *anything: 1 / 0)
    dog = Watchdog(tmp_path, Solo(), 60)
    dog._statuses.clear()
    dog._declare_hang(61.0)
    assert ends == [HANG]
    monkeypatch.setattr(watchdog, "main_thread_location", lambda: 1 / 0)
    Watchdog(tmp_path, Solo(), 60)._end_after(Failure(1, HANG, "the run hangs", hang=True), 0.0)
    assert ends == [HANG, HANG]


def test_watchdog_survives_its_own_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "TICK_SECONDS", 0.01)
    looks: list[float] = []
    again = threading.Event()

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) > 3:
            again.set()
        raise OSError("stale file handle")

    dog = Watchdog(tmp_path, Solo(), 60)
    monkeypatch.setattr(dog, "_look_around", look)
    with dog:
        assert again.wait(10)
    assert [record.message for record in caplog.records] == ["watchdog: OSError: stale file handle"]


def test_lost_ranks_are_found_from_two_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dog = Watchdog(tmp_path, Solo(), 60)
    dog._peers[1] = replace(STATUS, rank=1, started=None)
    monkeypatch.setattr(dog._statuses, "has_left", lambda rank: dog._peers.pop(rank))
    assert dog._lost() is None


def test_full_disk_leaves_no_empty_failure_file(tmp_path: Path) -> None:
    """An empty file there would let nobody be the first, nor know who was."""
    ranks = [RankStatusFolder(tmp_path, rank) for rank in range(2)]
    ranks[0].clear()
    failures = [Failure(rank, 65, f"of rank {rank}") for rank in range(2)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        assert ranks[0].claim(failures[0]) is failures[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ranks[1].claim(failures[1]) is failures[1]
    assert ranks[0].first() == failures[1]
    assert [path.name for path in ranks[0].folder.iterdir()] == ["first-failure.json"]


def refuse(draft: Path, name: Path) -> None:
    raise OSError(errno.EPERM, "no links here")


def deny(draft: Path, name: Path, link: Callable[[Path, Path], None] = os.link) -> None:
    link(draft, name)
    raise FileExistsError(errno.EEXIST, "an answer got lost, and the server was asked twice")


@pytest.mark.parametrize("link", [refuse, deny])
def test_first_failure_without_reliable_hard_links(
    link: Callable[[Path, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", link)
    ranks = [RankStatusFolder(tmp_path, rank) for rank in range(2)]
    ranks[0].clear()
    failures = [Failure(rank, 65, f"of rank {rank}") for rank in range(2)]
    assert ranks[1].claim(failures[1]) is failures[1]
    assert ranks[0].claim(failures[0]) == failures[1]


def test_location_of_a_rank_waiting_for_a_checkpoint() -> None:
    background, seen, over = Background(), [], threading.Event()

    class Values(list[float]):
        def __iter__(self) -> Iterator[float]:
            over.wait(10)
            return super().__iter__()

    def look() -> None:
        end = time.monotonic() + 10
        while not (seen and "background.py" in seen[-1][0]) and time.monotonic() < end:
            seen.append(main_thread_location())
            time.sleep(0.01)
        over.set()

    background.start(lambda: GlooGroup(0, 1, timedelta(seconds=1)).sum(Values()) and None)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(look)
        background.wait()
    background.close()
    at, waits = seen[-1]
    assert re.fullmatch(r"train/failure/background\.py:[0-9]+ \(sum\)", at)
    assert waits
