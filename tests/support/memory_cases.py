"""Counts the bytes that each rank of a real run holds, by part, between the backward pass and the update.

Started by torchrun on real gloo ranks, or as one process with `RANKS RANK`: the collectives of torch's fake process
group do nothing, so this process holds what that rank of so many would hold. Prints one line of JSON per case.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from tests.support.memory_models import CONFIGS, ROW, Case, deepspeed_config
from train.config import OptimConfig
from train.engine.optimizer import build_optimizer
from train.engine.runtime import Runtime, sharded_precision
from train.tuning import make_tuning


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Address -> bytes of the storages behind tensors."""
    local = [t.to_local() if hasattr(t, "to_local") else t for t in tensors if isinstance(t, Tensor)]
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local if t.device.type == "cpu"}
    return {address: size for address, size in found.items() if size}


def alive() -> dict[int, int]:
    return storages(x for x in gc.get_objects() if issubclass(type(x), Tensor))


def flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from flatten(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from flatten(inner)


def parts(runtime: Runtime, model: nn.Module, optimizer: Any) -> dict[str, Iterable[Any]]:
    """The tensors of each part; a storage counts for the first part that it is in."""
    everything = list(model.parameters())
    engine = model.optimizer if runtime.deepspeed else None
    flat = [*getattr(engine, "bit16_groups_flat", []), *getattr(engine, "fp16_partitioned_groups_flat", [])]
    master = [
        *getattr(engine, "single_partition_of_fp32_groups", []), *getattr(engine, "fp32_partitioned_groups_flat", [])
    ]  # fmt: skip
    inner = engine.optimizer if engine is not None else getattr(optimizer, "optimizer", optimizer)
    buckets = [b.buffer for b in getattr(engine, "ipg_buckets", {}).values()]
    accumulated = [getattr(engine, "averaged_gradients", None), getattr(engine, "grad_partitions_flat_buffer", None)]
    accumulated += [g.flat_partition for g in (accumulated[0] or {}).values() if hasattr(g, "flat_partition")]
    return {
        "weights": [*everything, *(getattr(p, "ds_tensor", None) for p in everything), *flat],
        "master": master,
        "optimizer": flatten(list(inner.state.values())),
        "buckets": flatten(buckets),
        "gradients": [*(p.grad for p in everything), *flatten(accumulated), *(p.grad for p in master)],
        "buffers": model.buffers(),
    }


def count(runtime: Runtime, model: nn.Module, optimizer: Any, before: dict[int, int]) -> dict[str, int]:
    gc.collect()
    seen, bytes_of = set(before), {}
    for name, tensors in parts(runtime, model, optimizer).items():
        found = {address: size for address, size in storages(tensors).items() if address not in seen}
        seen |= set(found)
        bytes_of[name] = sum(found.values())
    if hasattr(model, "_get_ddp_logging_data"):  # made in C++, where the garbage collector does not look
        sizes = model._get_ddp_logging_data()
        text = sizes.get("rebuilt_bucket_sizes") or sizes["bucket_sizes"]
        bytes_of["buckets"] += sum(int(size) for size in text.split(","))
    others = {address: size for address, size in alive().items() if address not in seen}
    return {**bytes_of, "others": sum(others.values())}


def build(case: Case) -> tuple[Runtime, nn.Module, Any]:
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in [n for n in os.environ if n.startswith("ACCELERATE_")]:
        del os.environ[name]
    if case.stage:
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(deepspeed_config(case), file)
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": file.name}
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    runtime = Runtime(case.precision, 1.0)
    tuning = make_tuning(case.tuning_config)
    model = tuning.apply(AutoModelForCausalLM.from_config(CONFIGS[case.family], dtype=case.load_dtype))
    config = OptimConfig(name=case.optimizer, weight_decay=0.1)
    if case.kind != "fsdp":
        return runtime, *runtime.prepare(model, build_optimizer(model, config, runtime.kind))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = sharded_precision(runtime.dtype)
    for module in list(model.modules()):
        if type(module).__name__.endswith(("DecoderLayer", "GPT2Block")):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return runtime, model, build_optimizer(model, config, "fsdp")


def measure(case: Case) -> dict[str, int]:
    gc.collect()
    before = alive()
    runtime, model, optimizer = build(case)
    found: dict[str, int] = {}
    last = model.optimizer if runtime.deepspeed else getattr(optimizer, "optimizer", optimizer)
    step = last.step

    def counting(*args: Any, **kwargs: Any) -> Any:
        found.update(count(runtime, model, optimizer, before))
        return step(*args, **kwargs)

    last.step = counting
    epilogue = getattr(last, "overlapping_partition_gradients_reduce_epilogue", None)
    if case.stage in (1, 2) and epilogue is not None:

        def at_end_of_backward() -> Any:
            backward = count(runtime, model, optimizer, before)
            found.update({f"{name} in backward": backward[name] for name in ("gradients", "buckets")})
            return epilogue()

        last.overlapping_partition_gradients_reduce_epilogue = at_end_of_backward
    for _ in range(2):
        ids = torch.zeros((1, ROW), dtype=torch.long)
        with runtime.micro_step(model, True) if case.kind != "fsdp" else torch.enable_grad():
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            runtime.accelerator.backward(loss)
        del loss, ids
        if not runtime.deepspeed:
            last.step()
            optimizer.zero_grad()
    if runtime.deepspeed:
        model.destroy()
    runtime.accelerator.free_memory()
    return found


def main() -> None:
    names = sys.argv[1:]
    if names[0].isdecimal():
        from deepspeed.runtime.zero import partition_parameters, partitioned_param_coordinator, stage3
        from torch.testing._internal.distributed.fake_pg import FakeStore

        for module in (partition_parameters, partitioned_param_coordinator, stage3):
            module.assert_ints_same_as_other_ranks = lambda *_: None  # the fake group has no answers to compare
        # What is gathered is nowhere written: not finite, and the update would be skipped.
        stage3.is_invalid_grad_norm = lambda *_: False
        count_, rank = names.pop(0), names.pop(0)
        os.environ |= {
            "WORLD_SIZE": count_, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": "0",
            "LOCAL_WORLD_SIZE": count_,
        }  # fmt: skip
        dist.init_process_group("fake", rank=int(rank), world_size=int(count_), store=FakeStore())
    else:
        dist.init_process_group("gloo")
    for name in names:
        try:
            found: Any = measure(Case(*name.split()))
        except Exception:
            found = {"error": traceback.format_exc()}
        print(json.dumps({"case": name, "rank": dist.get_rank(), "ranks": dist.get_world_size(), **found}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
