"""Model and optimizer state under FSDP2, by torch.distributed.checkpoint: each rank writes and reads its shards."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.tensor import DTensor

from train.checkpoint.replicated_state import load_scaler, require_same_names, tensors, trained_state
from train.checkpoint.unpickle import read_index, restricted

FOLDER = "fsdp"
SCALER = "scaler.json"  # fp16's loss scale, the same on all ranks; null in other precisions
ARCHIVE_BYTES = 5_000  # measured overhead: torch writes every shard of every tensor as a separate archive
OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True, strict=False)


class _Reader(FileSystemReader):
    """torch's reader, which reads the index, a pickle, safely."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        index = read_index(Path(self._get_metadata_path(kwargs.get("rank"))))
        index.storage_meta = index.storage_meta or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


def contents(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> dict[str, Any]:
    """The state that `write` writes. The tensors are not copied."""
    state: dict[str, Any] = {"model": _model(model)}
    if optimizer.state:  # torch would create a state by an optimizer step, and count that step
        state["optimizer"] = get_optimizer_state_dict(model, optimizer, options=OPTIONS)
    return {"state": state, "scaler": scaler.state_dict() if scaler is not None else None}


def write(contents: Mapping[str, Any], folder: Path, group: torch.distributed.ProcessGroup | None = None) -> None:
    """Write this rank's shards below folder/fsdp. A collective of `group`."""
    with _plain_errors():
        save_shards(contents["state"], checkpoint_id=folder / FOLDER, process_group=group)
    if torch.distributed.get_rank() == 0:
        (folder / FOLDER / SCALER).write_text(json.dumps(contents["scaler"]), encoding="utf-8")


def bytes_to_save(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes that this rank would write now."""
    shards = [part.to_local() for part in tensors(model, optimizer) if isinstance(part, DTensor)]
    return sum(shard.nbytes + ARCHIVE_BYTES for shard in shards)


def load(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, folder: Path) -> None:
    """Restore model and optimizer, saved by any number of ranks. A collective."""
    path = folder / FOLDER / SCALER
    load_scaler(scaler, json.loads(path.read_text(encoding="utf-8")), path)
    index = read_index(folder / FOLDER / ".metadata").state_dict_metadata
    state: dict[str, Any] = {"model": _model(model)}
    saved = [key.removeprefix("model.") for key in index if key.startswith("model.")]
    require_same_names(saved, state["model"], folder / FOLDER)
    if any(key.startswith("optimizer.") for key in index):
        state["optimizer"] = get_optimizer_state_dict(model, optimizer, options=OPTIONS)
    with restricted(folder / FOLDER), _plain_errors():
        load_shards(state, storage_reader=_Reader(folder / FOLDER))
    set_model_state_dict(model, state["model"], options=OPTIONS)
    if "optimizer" in state:
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=OPTIONS)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise RuntimeError instead of torch's CheckpointException, which `except Exception` does not catch."""
    try:
        yield
    except CheckpointException as error:
        rank, (reason, _) = min(error.failures.items())
        raise RuntimeError(f"rank {rank}: {reason}") from reason


def _model(model: nn.Module) -> dict[str, Any]:
    kept = trained_state(model)
    return {name: value for name, value in get_model_state_dict(model, options=OPTIONS).items() if name in kept}


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """Trained parameters and persistent buffers, unsharded, on the CPU; in one process, without a process group."""
    index = read_index(folder / FOLDER / ".metadata").state_dict_metadata
    whole = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in index.items()
        if key.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }
    with restricted(folder / FOLDER), warnings.catch_warnings(action="ignore"):  # "no process group" is intended
        load_shards(whole, storage_reader=_Reader(folder / FOLDER), no_dist=True)
    return {key.removeprefix("model."): tensor for key, tensor in whole.items()}
