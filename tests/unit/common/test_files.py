"""Free space and flushing to disk, on file systems that do not know everything."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from zerotune.common.files import free_bytes, lack_of_space, sync, sync_tree


@pytest.mark.parametrize(("total", "free", "lacking"), [(100, 50, False), (100, 5, True), (0, 0, False)])
def test_space_that_a_file_system_does_not_know_of_is_not_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, lacking: bool
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(total=total, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage if path == tmp_path else pytest.fail(str(path)))
    where = tmp_path / "not" / "made" / "yet"
    assert bool(lack_of_space(where, 10)) == lacking
    assert free_bytes(where) == free


def test_everything_below_a_folder_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("b")
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(str(Path(f"/proc/self/fd/{number}").readlink())))
    sync_tree(tmp_path)
    assert sorted(flushed) == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]


@pytest.mark.parametrize(("code", "is_told"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_flushed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_told: bool
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    if is_told:
        with pytest.raises(OSError, match="Input/output"):
            sync(tmp_path)
    else:
        sync(tmp_path)
