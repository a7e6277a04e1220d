"""Reads pickles of other libraries without running code from the file.

DeepSpeed and torch.distributed.checkpoint read their files with an unrestricted unpickler; here it is restricted.
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
    return UserError(f"{path} is refused: it would build or call something that no checkpoint contains ({error})")


def _member(kind: Any, name: Any) -> enum.Enum:
    """Replaces `getattr`, with which Python 3.11.0 to 3.11.3 pickle members of an enumeration; allows nothing else."""
    if not isinstance(kind, enum.EnumMeta) or name not in kind.__members__:
        raise pickle.UnpicklingError(f"getattr of {kind}")
    found: enum.Enum = kind.__members__[name]
    return found


@contextlib.contextmanager
def restricted(path: Path, *classes: type) -> Iterator[None]:
    """Restrict torch.load to tensors, plain containers and `classes`, even if a library passes weights_only=False.

    Raises UserError naming `path`, the file or folder being read, if it needs anything else.
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
    """The index of a torch.distributed.checkpoint folder. Raises UserError if it needs other classes."""
    try:
        with path.open("rb") as file:
            index: metadata.Metadata = _IndexUnpickler(file).load()
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    return index
