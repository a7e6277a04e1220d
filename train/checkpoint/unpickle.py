"""Reading what other libraries pickle without letting the file run code.

DeepSpeed and torch.distributed.checkpoint read their own files with an unrestricted unpickler; here it is restricted.
"""

from __future__ import annotations

import contextlib
import enum
import os
import pathlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata

from zerotune.common.errors import UserError

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
GETATTR = "builtins.getattr"
INDEX_CLASSES = (
    metadata.Metadata,
    metadata.TensorStorageMetadata,
    metadata.BytesStorageMetadata,
    metadata.ChunkStorageMetadata,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    metadata.TensorProperties,
    metadata._MEM_FORMAT_ENCODING,
    filesystem._StorageInfo,
    torch.serialization._get_layout,
    torch.Size,
    pathlib.PosixPath,
)


def _refusal(path: Path, error: pickle.UnpicklingError) -> UserError:
    return UserError(f"{path} is refused: loading it would build or call what no checkpoint holds ({error})")


def _member(kind: Any, name: Any) -> enum.Enum:
    """In place of `getattr`, by which Python 3.11.0 to 3.11.3 pickle a member of an enumeration: that and no more."""
    if not isinstance(kind, enum.EnumMeta) or name not in kind.__members__:
        raise pickle.UnpicklingError(f"getattr of {kind}")
    found: enum.Enum = kind.__members__[name]
    return found


@contextlib.contextmanager
def restricted(path: Path, *classes: type) -> Iterator[None]:
    """Hold torch.load to tensors, plain containers and `classes`, also where a library asks it to load anything.

    Raises UserError naming `path`, which is being read, where that does not suffice.
    """
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals([*classes, (_member, GETATTR)]):
            yield
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    finally:
        if before is None:
            del os.environ[FORCE]
        else:
            os.environ[FORCE] = before


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        for known in INDEX_CLASSES:
            if (module, name) == (known.__module__, known.__qualname__):
                return known
        if f"{module}.{name}" == GETATTR:
            return _member
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_index(path: Path) -> metadata.Metadata:
    """The index of a torch.distributed.checkpoint folder. Raises UserError where it names anything else."""
    try:
        with path.open("rb") as file:
            index: metadata.Metadata = _IndexUnpickler(file).load()
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    return index
