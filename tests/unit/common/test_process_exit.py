"""How a process ends: with its code and its output, and one of several without taking the interpreter down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zerotune.common.process_exit import report_to_launcher

ENDING = """
import atexit
from zerotune.common.process_exit import exit_process
atexit.register(lambda: print("taken down in order"))
print("said before", end="")
exit_process(3)
"""


@pytest.mark.parametrize(("processes", "said"), [("1", "said beforetaken down in order\n"), ("2", "said before")])
def test_the_code_and_the_output_arrive(processes: str, said: str) -> None:
    """What is printed stands in a buffer until then: the output is a pipe."""
    environment = {**os.environ, "WORLD_SIZE": processes}
    done = subprocess.run([sys.executable, "-c", ENDING], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, said, "")


def test_the_launcher_is_told_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report_to_launcher("alone: nobody to tell")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    report_to_launcher("too hot")
    assert json.loads((tmp_path / "error.json").read_text())["message"] == "too hot"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    report_to_launcher("cannot be written")


SPEAKING = """
import sys, time
from zerotune.common.process_exit import wait_for_first_process
from train.failure.stop import Stop
with Stop():
    print("ready", flush=True)
    wait_for_first_process()
print("spoke")
"""


def test_the_first_process_of_a_machine_speaks_and_the_others_can_be_ended() -> None:
    """A launcher ends them by SIGTERM as soon as the first has left; a request to stop is no reason to stay."""
    first = subprocess.run([sys.executable, "-c", SPEAKING], capture_output=True, text=True, check=True)
    assert first.stdout == "ready\nspoke\n"
    environment = {**os.environ, "LOCAL_RANK": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SPEAKING], env=environment, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        time.sleep(0.5)
        other.terminate()
        assert other.stdout.read() == ""
    assert other.returncode == -signal.SIGTERM
