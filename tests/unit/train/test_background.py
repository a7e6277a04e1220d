"""What writes checkpoints beside training: one piece of work at a time, and a copy where there is room for it."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from tests.support.ranks import Solo, Threads, together
from train.checkpoint import host_copy
from train.checkpoint.host_copy import HostCopy, available_bytes
from train.failure.background import Background, GlooGroup
from zerotune.common.errors import UserError

GB = 10**9


def test_an_error_is_seen_at_once_and_raised_once() -> None:
    background, go = Background(), threading.Event()

    def work() -> None:
        go.wait(10)
        raise OSError("no disk")

    background.wait()  # nothing to wait for
    background.start(work)
    assert not background.failed()
    go.set()
    while not background.failed():
        pass
    with pytest.raises(OSError, match="no disk"):
        background.wait()
    assert not background.failed()
    background.wait()
    background.close()


def test_a_copy_keeps_what_it_was_and_who_shares_memory_and_reuses_its_own() -> None:
    flat = torch.arange(6.0)
    live = {"parts": [flat[:2], flat[2:]], "tied": flat, "numbers": {"lr": 0.1}, "frozen": torch.ones(2, 2).t()}
    copy = HostCopy()
    first = copy(live)
    flat.zero_()
    live["numbers"]["lr"] = 0.2
    assert first["parts"][1].tolist() == [2.0, 3.0, 4.0, 5.0]
    assert first["numbers"] == {"lr": 0.1}
    assert first["tied"].data_ptr() == first["parts"][0].data_ptr() != flat.data_ptr()
    assert first["frozen"].stride() == live["frozen"].stride()
    place = first["tied"].data_ptr()
    assert copy(live)["tied"].data_ptr() == place


def group(folder: Path, limit: str, use: int, spare: tuple[str, int], names: tuple[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{use}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{spare[0]} {spare[1]}\n")


def test_a_job_may_have_less_memory_than_its_machine(tmp_path: Path) -> None:
    membership = tmp_path / "proc" / "self" / "cgroup"
    membership.parent.mkdir(parents=True)
    whole = available_bytes(tmp_path)  # without control groups
    assert whole > 10**8
    two = ("memory.max", "memory.current")
    membership.write_text("0::/slurm/job_1/step_0\n")
    slurm = tmp_path / "sys" / "fs" / "cgroup" / "slurm"
    group(slurm / "job_1" / "step_0", "max", 50, ("inactive_file", 0), two)
    assert available_bytes(tmp_path) == pytest.approx(whole, rel=0.5)
    group(slurm / "job_1", "10000", 7000, ("inactive_file", 500), two)
    assert available_bytes(tmp_path) == 3500
    group(slurm, "9000", 7000, ("inactive_file", 500), two)
    assert available_bytes(tmp_path) == 2500
    membership.write_text("9:name=systemd:/\n5:cpu,memory:/docker/unseen\n")
    one = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path / "sys" / "fs" / "cgroup" / "memory", "8000", 7000, ("total_inactive_file", 100), one)
    assert available_bytes(tmp_path) == 1100


def test_it_does_without_a_copy_where_one_machine_lacks_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host_copy, "available_bytes", lambda: 12 * GB)
    copy = HostCopy()
    assert copy.fits([9 * GB], Solo())
    assert copy.fits([18 * GB], Solo())  # 9 of them are its own already
    assert not copy.fits([30 * GB], Solo())
    assert not copy.fits([30 * GB], Solo())
    assert [record.message for record in caplog.records] == [
        "training waits while checkpoints are written: a copy needs 12.0 GB of memory, 12.0 GB are free"
    ]

    def ask(ranks: Threads) -> bool:  # each on a machine of its own
        return HostCopy().fits([GB, 11 * GB], ranks)

    assert together(2, ask) == [False, False]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert HostCopy().fits([4 * GB, 4 * GB], Solo())
    assert not HostCopy().fits([6 * GB, 6 * GB], Solo())  # together they are too much


def test_ranks_that_cannot_reach_one_another_are_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
        with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME"):
            GlooGroup(0, 2, timedelta(seconds=5))
    finally:
        torch.distributed.destroy_process_group()
