from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.ranks import together
from train.failure.lock import FILE, hold
from zerotune.common.errors import CannotWriteError, UserError

ROOT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from train.failure.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
RACER = """
import sys, time
from pathlib import Path
from train.failure.lock import hold
from train.errors import UserError
time.sleep(max(float(sys.argv[2]) - time.time(), 0))
try:
    with hold(Path(sys.argv[1])):
        print("won", flush=True)
        time.sleep(1.5)
except UserError as error:
    print("refused", error)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def leave(folder: Path, **content: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "started": 0, **content}))


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_lock_refuses_a_second_run(tmp_path: Path) -> None:
    first = start(HOLDER, tmp_path)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError) as refusal, hold(tmp_path):
            pass
        assert str(first.pid) in str(refusal.value)
        assert socket.gethostname() in str(refusal.value)
        assert str(tmp_path) in str(refusal.value)
    finally:
        first.kill()
        first.wait()


def test_lock_waits_for_the_holders_name(tmp_path: Path) -> None:
    nameless = HOLDER.replace("with hold(", "os.pwrite = lambda *a, w=os.pwrite: time.sleep(1) or w(*a)\nwith hold(")
    first = start(nameless.replace("import sys", "import os, sys"), tmp_path)
    try:
        while not (tmp_path / FILE).exists():
            time.sleep(0.01)
        time.sleep(0.2)
        with pytest.raises(UserError, match=f"in use by process {first.pid} "), hold(tmp_path):
            pass
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("collected", [True, False])
def test_lock_of_a_killed_run_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, collected: bool) -> None:
    """Also while its parent has not asked how it ended, or never will: it is a zombie."""
    first = start(HOLDER, tmp_path)
    assert first.stdout is not None
    first.stdout.readline()
    first.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, first.pid, os.WEXITED | (0 if collected else os.WNOWAIT))
    with caplog.at_level(logging.WARNING), hold(tmp_path):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / FILE}: taken over from process {first.pid} on {socket.gethostname()}, which has ended"
    ]
    caplog.clear()
    with hold(tmp_path):  # released cleanly: nothing to say
        pass
    assert not caplog.records


def test_child_processes_do_not_keep_the_lock(tmp_path: Path) -> None:
    fork = "    import os\n    if child := os.fork():\n        print(child, flush=True)\n    time.sleep(60)"
    first = start(HOLDER.replace("    time.sleep(60)", fork), tmp_path)
    assert first.stdout is not None
    first.stdout.readline()
    worker = int(first.stdout.readline())
    first.kill()
    first.wait()
    try:
        with hold(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_simultaneous_starts_have_one_winner(tmp_path: Path) -> None:
    at = time.time() + 1.5
    outcomes = sorted(racer.communicate()[0] for racer in [start(RACER, tmp_path / "run", at) for _ in range(4)])
    assert outcomes[-1] == "won\n"
    assert [outcome.split()[0] for outcome in outcomes] == ["refused"] * 3 + ["won"]


def test_lock_ignores_a_reused_process_id(tmp_path: Path) -> None:
    leave(tmp_path, pid=os.getpid(), started=1)
    with hold(tmp_path):
        pass


def test_lock_respects_a_holder_without_kernel_lock(tmp_path: Path) -> None:
    leave(tmp_path, pid=os.getppid(), started=None)
    with pytest.raises(UserError, match=str(os.getppid())), hold(tmp_path):
        pass


def test_lock_of_another_host_names_the_fix(tmp_path: Path) -> None:
    leave(tmp_path, host="node-17", pid=dead_pid())
    with pytest.raises(UserError, match="node-17") as refusal, hold(tmp_path):
        pass
    assert f"remove {tmp_path / FILE}" in str(refusal.value)
    assert json.loads((tmp_path / FILE).read_text())["host"] == "node-17"


def test_requeued_job_takes_over_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    leave(tmp_path, host="node-17", job="77", restarts=0)
    with pytest.raises(UserError), hold(tmp_path):
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with hold(tmp_path):
        pass


def test_requeued_job_waits_for_its_lock_to_expire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file server keeps the lock of a host that is gone for a while."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    first = start(HOLDER.replace("sleep(60)", "sleep(2.5)"), tmp_path)
    try:
        assert first.stdout is not None
        first.stdout.readline()
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        monkeypatch.setenv("SLURM_JOB_ID", "78")
        with pytest.raises(UserError), hold(tmp_path):
            pass
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        with caplog.at_level(logging.WARNING), hold(tmp_path):
            assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
        assert [record.getMessage() for record in caplog.records] == [
            f"{tmp_path / FILE}: waiting until the lock of this job's last start expires"
        ]
    finally:
        first.kill()
        first.wait()


def test_hold_enters_or_raises_on_all_ranks(tmp_path: Path) -> None:
    def enter(ranks: object) -> str:
        with hold(tmp_path, ranks):  # type: ignore[arg-type]
            return "in"

    assert together(2, enter) == ["in", "in"]
    leave(tmp_path, pid=os.getppid(), started=None)
    assert [type(outcome) for outcome in together(2, enter)] == [UserError, UserError]


@pytest.mark.parametrize("content", ["", "{", '{"pid": 3}', "[]"])
def test_damaged_lock_file_is_ignored(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with hold(tmp_path):
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert (tmp_path / FILE).read_text() == ""


def test_uncreatable_folder_gives_exit_code_73(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotWriteError), hold(tmp_path / "file" / "run"):
        pass
