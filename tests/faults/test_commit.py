"""F3 on the commit protocol alone: a process is killed at every point of a save, and at random moments."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.ranks import Solo, Threads, together
from train.checkpoint import commit, folders, manifest
from train.checkpoint.compatibility import Origin

ORIGIN = Origin("f", {"a": 1}, "ddp", 2)
FILES = 3
KEEP = 2


def payload(step: int, rank: int, number: int) -> bytes:
    return f"{step}/{rank}/{number};".encode() * 200


def save(parent: Path, step: int, ranks: Solo | Threads) -> None:
    def write(folder: Path) -> None:
        for number in range(FILES):
            (folder / f"{ranks.index}-{number}.bin").write_bytes(payload(step, ranks.index, number))

    folders.commit(parent, step, write, {"step": step}, ORIGIN, ranks)
    folders.prune(parent, KEEP, None, ranks)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: object, name: str, nth: int = 1) -> Callable[[], None]:
    """A plug that kills the process when `owner.name` is called for the nth time."""

    def plug() -> None:
        real, calls = getattr(owner, name), [0]

        def wrapper(*arguments: object, **keywords: object) -> object:
            calls[0] += 1
            if calls[0] >= nth:
                die()
            return real(*arguments, **keywords)

        setattr(owner, name, wrapper)

    return plug


def after(owner: object, name: str) -> Callable[[], None]:
    def plug() -> None:
        real = getattr(owner, name)

        def wrapper(*arguments: object, **keywords: object) -> object:
            real(*arguments, **keywords)
            return die()

        setattr(owner, name, wrapper)

    return plug


POINTS = {
    "before the folder": (before(commit, "_prepare"), 2),
    "before any file": (before(Path, "write_bytes"), 2),
    "between files": (before(Path, "write_bytes", nth=FILES + 2), 2),
    "before files are durable": (before(commit, "sync_tree"), 2),
    "before files are hashed": (before(commit, "_digest_share"), 2),
    "between two ranks' hashes": (before(commit, "_write_json", nth=2), 2),
    "before the manifest": (before(manifest, "build"), 2),
    "within the manifest": (before(commit.json, "dump", nth=4), 2),
    "before the rename": (before(commit, "_publish"), 2),
    "after the rename": (after(commit, "_publish"), 3),
    "before pruning": (before(folders, "prune"), 3),
    "within pruning": (before(folders, "_remove"), 3),
    "after pruning": (after(folders, "prune"), 3),
}


def in_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def assert_usable(parent: Path, at_least: int) -> int:
    """The state in which the next start finds the folder. Returns the step it would resume from."""
    finished = [name for name in commit.names_in(parent) if name.startswith("step-") and not name.endswith(".tmp")]
    for name in finished:
        assert manifest.verify(parent / name) is None, name  # no half checkpoint ever has a good name
    found = together(2, lambda ranks: folders.newest(parent, ranks, ORIGIN))
    assert found[0] == found[1]
    assert isinstance(found[0], Path), found
    step = folders.read_state(found[0])["step"]
    assert found[0].name == max(finished)
    assert step >= at_least
    for rank in (0, 1):
        for number in range(FILES):
            assert (found[0] / f"{rank}-{number}.bin").read_bytes() == payload(step, rank, number)
    left = [name for name in commit.names_in(parent) if name.endswith(".tmp") or name.startswith(".")]
    assert not left
    return step


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_of_the_save(point: str, tmp_path: Path) -> None:
    for step in (1, 2):
        together(2, lambda ranks, step=step: save(tmp_path, step, ranks))
    plug, expected = POINTS[point]

    def work() -> None:
        plug()
        together(2, lambda ranks: save(tmp_path, 3, ranks))

    _, status = os.waitpid(in_child(work), 0)
    assert os.WIFSIGNALED(status), "the plug was never reached"
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert assert_usable(tmp_path, 1) == expected
    together(2, lambda ranks: save(tmp_path, 3, ranks))
    together(2, lambda ranks: save(tmp_path, 4, ranks))
    assert assert_usable(tmp_path, 4) == 4


def test_killed_at_random_moments_until_done(tmp_path: Path) -> None:
    """Each life resumes where the last one left off and is killed somewhere; in the end all steps are done."""
    began = time.monotonic()
    together(2, lambda ranks: save(tmp_path, 1, ranks))
    one_save = time.monotonic() - began  # so that the kills fall into saves on a slow machine too
    last, lives, done, chance = 12, 0, 1, random.Random(0)
    while done < last:
        lives += 1
        assert lives < 300
        start = done

        def work(start: int = start) -> None:
            for step in range(start + 1, last + 1):
                together(2, lambda ranks, step=step: save(tmp_path, step, ranks))

        child = in_child(work)
        time.sleep(chance.uniform(0.0, (4 + 0.2 * lives) * one_save))  # longer and longer: saves may have become slower
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done = assert_usable(tmp_path, done)
    assert lives > 1
    assert folders.steps(tmp_path)[-1] == last
    assert len(folders.steps(tmp_path)) <= KEEP + 1


def test_a_disk_that_fills_up_in_the_middle(tmp_path: Path) -> None:
    """F9 at this level: a real file system of 1 MB, which takes the first checkpoint and not the second."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {disk} 2>/dev/null"):
        pytest.skip("this container may not mount")
    try:
        big = os.urandom(600_000)

        def attempt(ranks: Threads, step: int, expected_bytes: int | None) -> Path:
            def write(folder: Path) -> None:
                if ranks.index == 1:
                    (folder / "big.bin").write_bytes(big)

            return folders.commit(disk / "checkpoints", step, write, {}, ORIGIN, ranks, expected_bytes)

        together(2, lambda ranks: attempt(ranks, 1, None))
        for expected_bytes, word in ((None, "are needed"), (0, "No space left")):
            failures = together(2, lambda ranks, e=expected_bytes: attempt(ranks, 2, e))
            assert [type(failure).__name__ for failure in failures] == ["CannotWriteError"] * 2
            assert any(word in str(failure) for failure in failures)
            assert str(disk) in str(failures[0])
            assert commit.names_in(disk / "checkpoints") == ["step-000001"]
            assert manifest.verify(disk / "checkpoints" / "step-000001") is None
    finally:
        os.system(f"umount {disk}")
