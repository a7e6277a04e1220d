"""Writes weights tensor by tensor into safetensors files of a limited size, and keeps their digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

SHARD_BYTES = 5_000_000_000


class Writer(Protocol):
    """Takes the tensors of the merged model one after another.

    digests: name -> digest of each written tensor; empty if names change on writing.
    """

    digests: dict[str, str]

    def add(self, name: str, tensor: Tensor) -> None: ...

    def close(self) -> None: ...


def digest(tensor: Tensor) -> str:
    """Digest of dtype, shape and bytes."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(flat.numpy().data).hexdigest()}"


class ShardWriter:
    """Holds at most one shard in memory."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.digests: dict[str, str] = {}
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = self.total_bytes = 0
        self.shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor; write the shard once it is full."""
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.pending_bytes + size > self.shard_bytes:
            self._flush()
        self.pending[name] = tensor.detach().contiguous()
        self.digests[name] = digest(tensor)
        self.pending_bytes += size
        self.total_bytes += size

    def close(self) -> None:
        """Write the last shard, rename the files as Hugging Face expects, and write an index if there are several."""
        self._flush()
        count = len(self.shards)
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        if count == 1:
            names = ["model.safetensors"]
        for index, name in enumerate(names):
            self._draft(index).rename(self.folder / name)
        if count > 1:
            where = {key: name for keys, name in zip(self.shards, names, strict=True) for key in keys}
            index_file = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(where.items()))}
            text = json.dumps(index_file, indent=2) + "\n"
            (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _flush(self) -> None:
        if self.pending:
            save_file(self.pending, self._draft(len(self.shards)), {"format": "pt"})
            self.shards.append(list(self.pending))
            self.pending, self.pending_bytes = {}, 0

    def _draft(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.safetensors"


class ModelWriter:
    """Sets the tensors in a model, and lets transformers write it.

    For models whose files name or divide tensors differently from the model (fused experts).
    """

    def __init__(self, model: Any, model_config: Any, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.digests: dict[str, str] = {}
        model.config = model_config
        if not model_config.tie_word_embeddings:
            model.all_tied_weights_keys = {}

    def add(self, name: str, tensor: Tensor) -> None:
        path, _, leaf = name.rpartition(".")
        module = self.model.get_submodule(path)
        is_buffer = leaf in dict(module.named_buffers(recurse=False))
        setattr(module, leaf, tensor if is_buffer else nn.Parameter(tensor, requires_grad=False))

    def close(self) -> None:
        self.model.tie_weights()
        self.model.save_pretrained(self.folder, max_shard_size=SHARD_BYTES)
