"""F24, a short one; `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.runs import Workplace, Zygote
from tests.faults.soak import Soak


@pytest.mark.parametrize("kind", ["single", "zero2"])
def test_random_kills_and_stops_change_no_bit(kind: str, zygote: Zygote, workplace: Workplace, tmp_path: Path) -> None:
    soak = Soak(zygote, workplace, tmp_path / kind, kind, seed=1)
    soak.run()
    assert soak.survived["kills"] >= 2
