"""How an error that ends a process is told: the launcher names the rank that failed first."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from train.errors import EndedWithError
from train.failure.report_error import report_error


def test_within_one_second_the_launcher_names_the_rank_that_failed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.5)
    failures = {}
    for rank, error in enumerate((EndedWithError("ended because rank 1 failed first", 1), ValueError("no more rows"))):
        file = tmp_path / f"{rank}.json"
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        report_error(error)
        failures[rank] = ProcessFailure(rank, 1, 1, str(file))
    rank, first = ChildFailedError("training", failures).get_first_failure()
    assert (rank, first.message) == (1, "ValueError: no more rows")
