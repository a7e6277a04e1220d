"""F19: a merge that is killed anywhere leaves either the former folder, whole, or none; the next merge cleans up."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.training_runs import ROOT, environment
from tests.support.tuned_runs import finished_run, tiny_model
from train.config import TuningConfig


@contextlib.contextmanager
def victim(run, out):
    """A function that merges in a child: fatal event -> (exit status, events seen)."""
    command = [sys.executable, "-m", "tests.support.merge_victim", str(run), str(out)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip

    def attempt(fatal):
        process.stdin.write(f"{fatal}\n")
        process.stdin.flush()
        status, events = process.stdout.readline().split()
        return int(status), events

    try:
        yield attempt
    finally:
        process.stdin.close()
        process.wait(60)


def whole(out):
    """The step that was merged, after reading everything as an evaluation would."""
    model = AutoModelForCausalLM.from_pretrained(out)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    return json.loads((out / "run.json").read_text())["merge"]["step"]


@pytest.mark.timeout(300)
def test_killed_anywhere(tmp_path):
    finished_run(tmp_path / "run", tiny_model(tmp_path / "base", "qwen2"), TuningConfig())
    out = tmp_path / "hand-over" / "model"
    with victim(tmp_path / "run", out) as attempt:
        status, events = attempt(0)
        assert status == 0
        last = int(events)
        assert last > 10
        for fatal in sorted({1, 2, last // 3, last // 2, *range(last - 3, last + 1)}):  # with a former merge in place
            assert attempt(fatal)[0] == -signal.SIGKILL
            assert whole(out if out.exists() else out.with_name("model.replaced")) == 7
        for left in sorted(out.parent.iterdir()):
            left.rename(tmp_path / f"gone-{left.name}")
        for fatal in (3, last // 2, last - 4):  # and with none
            assert attempt(fatal)[0] == -signal.SIGKILL
            assert not out.exists()
        assert attempt(0)[0] == 0
    assert whole(out) == 7
    assert [path.name for path in out.parent.iterdir()] == ["model"]
