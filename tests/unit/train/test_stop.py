from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.failure.stop import SIGNALS, Status, Stop
from zerotune.common.errors import CannotWriteError


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_set_the_first_reason(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    with Stop() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested()
        assert stop.reason == number.name
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_stop_file_is_seen_and_cleared(tmp_path: Path) -> None:
    stop = Stop()
    stop.watch(tmp_path)
    assert not stop.requested()
    stop.clear()  # nothing there: fine
    (tmp_path / "STOP").touch()
    assert stop.requested()
    assert stop.reason == "STOP file"
    stop.clear()
    assert not (tmp_path / "STOP").exists()
    assert stop.requested()  # a request is never taken back


def test_other_ranks_ignore_the_stop_file(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    stop = Stop()
    stop.watch(None)
    assert not stop.requested()
    stop.clear()
    assert (tmp_path / "STOP").exists()


def test_deadline_counts_from_program_start() -> None:
    stop = Stop()
    time.sleep(0.02)
    stop.watch(None, after_minutes=0.02 / 60)
    assert stop.requested()
    assert stop.reason == "deadline"
    later = Stop()
    later.watch(None, after_minutes=5)
    assert not later.requested()


def test_stop_file_precedes_the_deadline(tmp_path: Path) -> None:
    """A batch script starts a run again that met its deadline, not one that somebody has stopped."""
    (tmp_path / "STOP").touch()
    stop = Stop()
    stop.watch(tmp_path, after_minutes=0)
    assert stop.requested()
    assert stop.reason == "STOP file"


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_forked_children_keep_default_signal_handlers(before: signal.Handlers) -> None:
    """A pool of workers is ended by SIGTERM; had they inherited our handler, the pool would wait for ever."""
    former = signal.signal(signal.SIGTERM, before)
    read, write = os.pipe()
    with Stop() as stop:
        child = os.fork()
        if child == 0:
            os.write(write, b"ready")
            time.sleep(30)
            os._exit(0)
        os.read(read, 5)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert not stop.requested()
    assert signal.signal(signal.SIGTERM, former) == before


def test_stop_module_imports_fast() -> None:
    code = "import sys, train.failure.stop; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_status_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    status_file = Status(tmp_path)
    status_file.begin(3)
    status_file.write("preempted", 7, reason="SIGTERM", exit_code=0, rows=["a.jsonl:3"])
    status = json.loads((tmp_path / "status.json").read_text())
    moment = status.pop("time")
    assert moment.endswith("+00:00")
    said = {"state": "preempted", "step": 7, "reason": "SIGTERM", "exit_code": 0}
    assert status == {**said, "job": None, "rows": ["a.jsonl:3"]}
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_status_contains_job_and_restart_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line of its own, as the batch script looks for it."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    status = Status(tmp_path)
    status.begin(0)
    assert ' "job": "4711.0",' in (tmp_path / "status.json").read_text().splitlines()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    status.write("preempted", 3, "STOP file", 0)
    lines = (tmp_path / "status.json").read_text().splitlines()
    assert {' "state": "preempted",', ' "reason": "STOP file",', ' "job": "4711.2",'} <= set(lines)


def test_unwritable_status_gives_exit_code_73(tmp_path: Path) -> None:
    (tmp_path / "status.json").mkdir()
    with pytest.raises(CannotWriteError, match=r"status\.json") as failure:
        Status(tmp_path).begin(0)
    assert failure.value.exit_code == 73
