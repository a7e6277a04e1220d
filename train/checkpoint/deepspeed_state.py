"""Weights and optimizer under DeepSpeed: its own shards, one folder, no `latest` file, nothing executed on loading.

DeepSpeed pickles its shards and reads them without restriction. Here they are read by torch's restricted unpickler,
which builds tensors, plain containers and the few DeepSpeed classes listed below, and calls nothing else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from train.checkpoint import manifest, resharding
from train.checkpoint.replicated_state import learned, require_same_names
from train.checkpoint.unpickle import restricted
from train.checkpoint.zero_shards import HARMLESS, Shards
from zerotune.common.errors import UserError

TAG = "deepspeed"
NAMES = "deepspeed.json"


class _Files(TorchCheckpointEngine):  # DeepSpeed's own extension point
    """How DeepSpeed's engine writes and reads one file.

    What it would write is only noted: its ranks meet in barriers between files, and one that could not write there
    would leave the others waiting. Of the module only what training changes is kept.
    """

    def __init__(self, kept: frozenset[str]) -> None:
        super().__init__()
        self.kept = kept
        self.noted: dict[str, Any] = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing is written yet."""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        if isinstance(state_dict.get("module"), dict):
            state_dict["module"] = {name: t for name, t in state_dict["module"].items() if name in self.kept}
        self.noted[path] = _detached(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        with restricted(Path(path), *HARMLESS):
            return super().load(path, map_location)


def _detached(value: Any) -> Any:
    """The same without the mark of a trained tensor, which a copy does not have either."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) is dict:  # other mappings and sequences hold shapes, by types that must stay
        return {key: _detached(inner) for key, inner in value.items()}
    return [_detached(inner) for inner in value] if type(value) is list else value


@contextlib.contextmanager
def _through(engine: DeepSpeedEngine) -> Iterator[_Files]:
    """Let the engine use our file access, and keep it from putting scripts beside the shards."""
    if engine.zero_optimization_stage() < 1:
        raise UserError("DeepSpeed with ZeRO stage 0 is not supported: use accelerate_configs for DDP, or stage 1 to 3")
    if engine.zero_nvme_offload_optimizer():  # its state lies in files that DeepSpeed would copy by itself
        raise UserError("DeepSpeed's offload to NVMe is not supported: use offload to the CPU")
    before = engine.checkpoint_engine
    engine.checkpoint_engine = files = _Files(frozenset(learned(engine.module)))
    engine._copy_recovery_script = lambda folder: None
    try:
        yield files
    finally:
        engine.checkpoint_engine = before
        del engine._copy_recovery_script


def _shapes(engine: DeepSpeedEngine) -> dict[str, list[int]]:
    """The trained parameters with their whole shapes; under ZeRO-3 a parameter's own shape is that of its shard."""
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in trained}


def contents(engine: DeepSpeedEngine) -> dict[str, Any]:
    """What `write` writes, file by file: this rank's shards, or text. Called by all ranks together; the tensors are
    the live ones.
    """
    with _through(engine) as files:
        engine.save_checkpoint(".", tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    names = {NAMES: json.dumps(_shapes(engine), indent=1)} if engine.global_rank == 0 else {}
    return files.noted | names


def write(files: Mapping[str, Any], folder: Path) -> None:
    """Put the files of `contents`, or a copy of them, into `folder`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            torch.save(content, path)


def load(engine: DeepSpeedEngine, folder: Path) -> None:
    """Put weights and optimizer back; called by all ranks together, before the first forward pass.

    Any number of ranks may have written them, under any stage.
    """
    saved, present = json.loads((folder / NAMES).read_text(encoding="utf-8")), _shapes(engine)
    require_same_names(saved, present, folder / NAMES)
    for name, shape in present.items():
        if saved[name] != shape:
            raise UserError(f"{folder / NAMES}: {name} has shape {saved[name]}, the model's is {shape}")
    if not _as_saved(engine, folder):
        resharding.load(engine, folder / TAG)
        return
    with _through(engine):
        # Not strict: frozen weights are not in the checkpoint; the trained ones were compared above.
        path, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
    if path is None:
        raise UserError(f"{folder / TAG}: DeepSpeed found no checkpoint in it")


def _as_saved(engine: DeepSpeedEngine, folder: Path) -> bool:
    """Whether as many ranks wrote the checkpoint, under the same stage: each then reads back its own file."""
    saved = manifest.read(folder)
    stage = int(engine.zero_optimization_stage())
    return (saved["distributed"], saved["world_size"]) == (f"zero-{stage}", engine.dp_world_size)


def bytes_to_save(engine: DeepSpeedEngine) -> int:
    """Bytes of tensors that this rank would write now: its float32 slices, their moments, and the module's own weights
    (under ZeRO-3 empty but for a few small ones)."""
    flat, is_stage_3 = resharding.slices(engine), engine.zero_optimization_stage() == 3
    moments = [value for part in flat for value in engine.optimizer.optimizer.state.get(part, {}).values()]
    module = learned(engine.module).values() if is_stage_3 or engine.global_rank == 0 else ()
    return sum(tensor.nbytes for tensor in (*flat, *moments, *module) if isinstance(tensor, Tensor))


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """The trained parameters (from the float32 master weights) and persistent buffers, joined from all shards."""
    shapes = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    shards = Shards(folder / TAG)
    require_same_names(shards.names, shapes, folder / TAG)
    return {name: shards.whole(name, shape) for name, shape in shapes.items()} | shards.buffers
