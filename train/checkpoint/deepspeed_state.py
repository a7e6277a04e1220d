"""Model and optimizer state under DeepSpeed: its own shards, in one folder, without a `latest` file.

DeepSpeed pickles its shards and reads them without restriction. Here torch's restricted unpickler reads them: it
builds tensors, plain containers and a few listed DeepSpeed classes, and calls nothing else.
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
from train.checkpoint.replicated_state import require_same_names, trained_state
from train.checkpoint.unpickle import restricted
from train.checkpoint.zero_shards import ALLOWED_CLASSES, Shards
from zerotune.common.errors import UserError

TAG = "deepspeed"
NAMES = "deepspeed.json"


class _Files(TorchCheckpointEngine):  # DeepSpeed's own extension point
    """Collects the files that DeepSpeed's engine would write, and reads files safely.

    DeepSpeed has barriers between files: a rank that failed to write one would leave the others waiting. Of the
    module, only the tensors that training changes are kept.
    """

    def __init__(self, kept: frozenset[str]) -> None:
        super().__init__()
        self.kept = kept
        self.collected: dict[str, Any] = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Does nothing: `write` creates the folders."""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        if isinstance(state_dict.get("module"), dict):
            state_dict["module"] = {name: t for name, t in state_dict["module"].items() if name in self.kept}
        self.collected[path] = _detached(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        with restricted(Path(path), *ALLOWED_CLASSES):
            return super().load(path, map_location)


def _detached(value: Any) -> Any:
    """The same value with all tensors detached, as a copy has them."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) is dict:  # other mappings and sequences hold shapes and must keep their types
        return {key: _detached(inner) for key, inner in value.items()}
    return [_detached(inner) for inner in value] if type(value) is list else value


@contextlib.contextmanager
def _own_file_access(engine: DeepSpeedEngine) -> Iterator[_Files]:
    """Make the engine use `_Files`, and keep it from writing scripts beside the shards."""
    if engine.zero_optimization_stage() < 1:
        raise UserError("DeepSpeed with ZeRO stage 0 is not supported: use accelerate_configs for DDP, or stage 1 to 3")
    if engine.zero_nvme_offload_optimizer():  # DeepSpeed would copy the files of its state by itself
        raise UserError("DeepSpeed's offload to NVMe is not supported: use offload to the CPU")
    before = engine.checkpoint_engine
    engine.checkpoint_engine = files = _Files(frozenset(trained_state(engine.module)))
    engine._copy_recovery_script = lambda folder: None
    try:
        yield files
    finally:
        engine.checkpoint_engine = before
        del engine._copy_recovery_script


def _shapes(engine: DeepSpeedEngine) -> dict[str, list[int]]:
    """Full shapes of the trained parameters. Under ZeRO-3, `parameter.shape` is that of the shard."""
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in trained}


def contents(engine: DeepSpeedEngine) -> dict[str, Any]:
    """The content of this rank's files by name, for `write`: shards, not copied, or text. A collective."""
    with _own_file_access(engine) as files:
        engine.save_checkpoint(".", tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    names = {NAMES: json.dumps(_shapes(engine), indent=1)} if engine.global_rank == 0 else {}
    return files.collected | names


def write(files: Mapping[str, Any], folder: Path) -> None:
    """Write the files of `contents`, or a copy of them, into `folder`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            torch.save(content, path)


def load(engine: DeepSpeedEngine, folder: Path) -> None:
    """Restore model and optimizer, saved by any number of ranks and any stage. A collective, before the first step."""
    saved, present = json.loads((folder / NAMES).read_text(encoding="utf-8")), _shapes(engine)
    require_same_names(saved, present, folder / NAMES)
    for name, shape in present.items():
        if saved[name] != shape:
            raise UserError(f"{folder / NAMES}: {name} has shape {saved[name]}, the model's is {shape}")
    written, now = manifest.read(folder), (f"zero-{int(engine.zero_optimization_stage())}", engine.dp_world_size)
    if (written["distributed"], written["world_size"]) != now:  # else each rank reads its own file
        resharding.load(engine, folder / TAG)
        return
    with _own_file_access(engine):
        # Not strict: frozen weights are not in the checkpoint; the trained ones were compared above.
        path, _ = engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
    if path is None:
        raise UserError(f"{folder / TAG}: DeepSpeed found no checkpoint here")


def bytes_to_save(engine: DeepSpeedEngine) -> int:
    """Bytes of tensors that this rank would write now: float32 slices, optimizer state, and the module's own weights
    (under ZeRO-3 only a few small ones)."""
    flat, is_stage_3 = resharding.slices(engine), engine.zero_optimization_stage() == 3
    moments = [value for part in flat for value in engine.optimizer.optimizer.state.get(part, {}).values()]
    module = trained_state(engine.module).values() if is_stage_3 or engine.global_rank == 0 else ()
    return sum(tensor.nbytes for tensor in (*flat, *moments, *module) if isinstance(tensor, Tensor))


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """Trained parameters (the float32 master weights) and persistent buffers, joined from all shards."""
    shapes = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    shards = Shards(folder / TAG)
    require_same_names(shards.names, shapes, folder / TAG)
    return {name: shards.parameter(name, shape) for name, shape in shapes.items()} | shards.buffers
