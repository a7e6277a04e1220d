"""F21: two runs started on one run folder."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path

import pytest

from tests.support.fault_runs import Workplace, Zygote, losses, status, until


@pytest.mark.parametrize("kind", ["single", "ddp"])
def test_the_second_is_refused_and_a_dead_first_is_taken_over(
    kind: str, zygote: Zygote, workplace: Workplace, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    slow = [{"at": "train.engine.loop:Loop._update", "nth": 0, "do": "sleep 0.5"}]
    with contextlib.closing(zygote.start(workplace.arguments(run), tmp_path / "first", kind, slow)) as first:
        until(lambda: (run / "metrics.jsonl").exists() and losses(run))
        second = zygote.run(workplace.arguments(run), tmp_path / "second", kind)
        assert set(second.codes) == {64}, second.output
        assert f"in use by process {first.pids[0]} on host {socket.gethostname()}" in second.output
        assert status(run)["state"] == "running"  # the second did not touch the first one's files
        first.signal(signal.SIGKILL)
        first.wait()
    third = zygote.run(workplace.arguments(run), tmp_path / "third", kind)
    assert set(third.codes) == {0}, third.output
    assert f"taken over from process {first.pids[0]}" in third.output
    fourth = zygote.run(workplace.arguments(run), tmp_path / "fourth", kind)
    assert set(fourth.codes) == {0}, fourth.output
    assert "taken over" not in fourth.output
