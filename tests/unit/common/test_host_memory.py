"""Memory that a tensor has left is not asked of the system again."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import resource, torch
from zerotune.common.host_memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pass_of_a_model = [torch.ones(750_000) for _ in range(200)]
    del pass_of_a_model
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back at once")
def test_freed_memory_is_kept() -> None:
    asked = {keep: _pages(keep) for keep in (True, False)}
    assert asked[True][1] < 0.1 * asked[True][0]
    assert asked[False][1] > 0.5 * asked[False][0]  # else the call is not needed any more


def _pages(keep: bool) -> list[int]:
    """New pages of each of three passes over 200 tensors of 3 MB."""
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [int(line) for line in output.split()]
