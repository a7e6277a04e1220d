"""Files of other libraries: members of enumerations however a version of Python pickles them, and nothing that runs."""

from __future__ import annotations

import collections
import enum
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata

from train.checkpoint.unpickle import read_index, restricted
from zerotune.common.errors import UserError


class Stage(enum.IntEnum):
    LAST = 3


class Reduced:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def loaded(path: Path, value: Any, *classes: type) -> Any:
    torch.save({"stage": value}, path)
    with restricted(path, *classes):
        return torch.load(path)["stage"]


@pytest.mark.parametrize("member", [Stage.LAST, Reduced(getattr, Stage, "LAST"), Reduced(Stage, 3)])
def test_members_are_read_whichever_python_wrote_them(tmp_path: Path, member: Any) -> None:
    """3.11.0 to 3.11.3, such as Debian 12's, write a call of `getattr`; those before and after one of the class."""
    assert loaded(tmp_path / "file", member, Stage) is Stage.LAST
    with pytest.raises(UserError, match="is refused"):
        loaded(tmp_path / "file", member)


def test_the_members_of_an_index_too(tmp_path: Path) -> None:
    path, member = tmp_path / ".metadata", metadata._MEM_FORMAT_ENCODING.TORCH_PRESERVE_FORMAT
    for written in (member, Reduced(getattr, type(member), member.name)):
        path.write_bytes(pickle.dumps(written))
        assert read_index(path) is member


@pytest.mark.parametrize(
    "call",
    [
        Reduced(getattr, Stage, "__subclasses__"),
        Reduced(getattr, Stage, "mro"),
        Reduced(getattr, collections.OrderedDict, "fromkeys"),
        Reduced(getattr, torch.Size, "numel"),
        Reduced(os.getpid),
    ],
)
def test_getattr_gives_nothing_but_members(tmp_path: Path, call: Reduced) -> None:
    path = tmp_path / "file"
    with pytest.raises(UserError, match="is refused"):
        loaded(path, call, Stage, torch.Size)
    path.write_bytes(pickle.dumps(call))
    with pytest.raises(UserError, match="is refused"):
        read_index(path)
