"""F24, a short one; `make soak` is the long one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.soak import Soak
from tests.support.fault_runs import Workplace, Zygote

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", ["single", "zero2"])
def test_random_kills_and_stops_change_no_bit(kind: str, zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    soak = Soak(zygote, workplace, tmp_path / kind, kind, seed=1)
    soak.run()
    assert soak.survived["kills"] >= 2


def test_the_long_one_ends_without_a_terminal() -> None:
    command = [sys.executable, "-m", "tests.faults.soak", "--kills", "1", "--kinds", "single"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    last = re.fullmatch(r"kills=(\d+) equal_runs=(\d+) minutes=[\d.]+", done.stdout.splitlines()[-1])
    assert last
    assert int(last[1]) >= 1 <= int(last[2])
