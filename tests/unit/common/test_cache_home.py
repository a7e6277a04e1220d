"""A cache that several users share."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from train.config import DataConfig
from train.data.token_table import TableWriter, cache_root, obtain
from zerotune.common import cache_home as cache


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def nothing(writer: TableWriter) -> dict[str, int]:
    return {}


@pytest.mark.parametrize(("home_mode", "expected", "lock"), [(0o2775, 0o2775, 0o664), (0o1777, 0o1777, 0o666)])
def test_what_is_made_in_a_shared_cache_is_shared_too(home_mode: int, expected: int, lock: int, tmp_path: Path) -> None:
    home = tmp_path / "cache"
    home.mkdir()
    home.chmod(home_mode)
    before = os.umask(0o022)
    try:
        root = cache_root(DataConfig(cache_folder=str(home)))
        assert obtain(root, "ab12", nothing)
    finally:
        os.umask(before)
    assert [mode(path) for path in (root, root / "ab")] == [expected] * 2
    assert mode(root / "ab" / "ab12.lock") == lock


def test_a_cache_of_ones_own_stays_ones_own(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        root = cache_root(DataConfig(cache_folder=str(tmp_path / "new" / "cache")))
        obtain(root, "ab12", nothing)
    finally:
        os.umask(before)
    assert {mode(path) for path in (tmp_path / "new", root, root / "ab")} == {0o755}


def test_the_second_user_of_a_cache_that_is_not_shared_has_one_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache._instead_of.cache_clear()
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    (tmp_path / "theirs" / "tokens").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, kind: not str(path).startswith(str(tmp_path / "theirs")))
    for _ in range(2):
        assert cache.cache_home(str(tmp_path / "theirs")) == tmp_path / "me" / ".cache" / "zerotune"
    (record,) = caplog.records
    assert "chmod -R a+rwX" in record.getMessage()
