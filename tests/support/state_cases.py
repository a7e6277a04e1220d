"""Started by torchrun with two ranks: saves, goes on, loads into a fresh model, goes on again, and compares every bit.

Leaves one JSON file per case and rank. All cases run in one launch: starting processes is what costs time.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from train.checkpoint import folders, manifest
from train.checkpoint.compatibility import Origin
from train.checkpoint.host_copy import HostCopy
from train.checkpoint.state import bytes_to_save, load_state, state_writer, trained_weights
from train.failure.background import Background, GlooGroup

SIZES = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES, **HEADS, tie_word_embeddings=True),
    "llama": LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=False),
}


class Ranks:
    index, count, device = 0, 1, torch.device("cpu")

    def __init__(self) -> None:
        self.index, self.count = dist.get_rank(), dist.get_world_size()

    def sum(self, values: Any) -> list[float]:
        joined = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(joined)
        return joined.tolist()

    def barrier(self) -> None:
        dist.barrier()


@dataclass(frozen=True)
class Case:
    """What a name such as `zero-2 llama lora adamw bf16` says; precision is fp32, bf16 or scaled (fp32, loss scale)."""

    kind: str
    model: str
    tuning: str
    optimizer: str
    precision: str

    @property
    def lora(self) -> bool:
        return self.tuning == "lora"

    @property
    def zero(self) -> bool:
        return self.kind.startswith("zero")


def accelerator_of(case: Case) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = "bf16" if case.precision == "bf16" else "no"
    handlers = [InitProcessGroupKwargs(backend="gloo")]
    if not case.zero:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        return Accelerator(cpu=True, mixed_precision=precision, kwargs_handlers=handlers)
    stage = int(case.kind[-1])
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": 100_000,  # the default sets 2 GB aside at every step
            "allgather_bucket_size": 100_000,
            "stage3_param_persistence_threshold": 100,
            "sub_group_size": 5_000,  # several flat slices, as in a model of billions
        },
    }
    if case.precision == "bf16":
        config["bf16"] = {"enabled": True}
    plugin = DeepSpeedPlugin(hf_ds_config=config)
    return Accelerator(deepspeed_plugin=plugin, mixed_precision=precision, kwargs_handlers=handlers)


def optimizer_of(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if case.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(trained, lr=1e-2, min_8bit_size=1024)
    return torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.1, fused=case.kind == "ddp")


class Run:
    """One model with its engine, as after a fresh start of the program."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        self.accelerator = accelerator_of(case)
        if case.precision == "scaled":  # what fp16 does to gradients, where a CPU has no fp16
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2)
        torch.manual_seed(7 if case.lora else seed)  # a frozen base is the same at each start; what is trained is not
        model = AutoModelForCausalLM.from_config(CONFIGS[case.model])
        if case.lora:
            torch.manual_seed(seed)
            model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        if case.kind == "fsdp":
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for module in model.modules():
                if type(module).__name__.endswith("DecoderLayer"):
                    fully_shard(module, mesh=mesh)
            self.model = fully_shard(model, mesh=mesh)
            self.optimizer = self.accelerator.prepare_optimizer(optimizer_of(case, self.model), device_placement=False)
        else:
            self.model, self.optimizer = self.accelerator.prepare(model, optimizer_of(case, model))

    def train(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            numbers = torch.Generator().manual_seed(1000 * step + dist.get_rank())
            ids = torch.randint(0, SIZES["vocab_size"], (2, 16), generator=numbers)
            loss = self.model(input_ids=ids, labels=ids).loss
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def whole(self, what: Callable[[nn.Parameter], Tensor | None]) -> dict[str, Tensor]:
        inner = self.accelerator.unwrap_model(self.model)
        return {n: what(p).clone() for n, p in inner.named_parameters() if p.requires_grad and what(p) is not None}

    def weights(self) -> dict[str, Tensor]:
        if self.case.zero:
            return self.whole(deepspeed.utils.safe_get_full_fp32_param)
        return self.whole(lambda p: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach())

    def moments(self) -> dict[str, Tensor]:
        """Every tensor in the optimizer's state: this rank's part of it, as it lies in memory."""
        if self.case.zero:
            engine = self.model.optimizer
            stage = int(self.case.kind[-1])
            flat = engine.fp32_partitioned_groups_flat if stage == 3 else engine.single_partition_of_fp32_groups
            states = {f"group {index}": engine.optimizer.state[part] for index, part in enumerate(flat)}
        else:
            state = getattr(self.optimizer, "optimizer", self.optimizer).state
            inner = self.accelerator.unwrap_model(self.model)
            states = {name: state[p] for name, p in inner.named_parameters() if p.requires_grad}
        local = {f"{n} {k}": v for n, values in states.items() for k, v in values.items()}
        return {n: torch.as_tensor(v.to_local() if hasattr(v, "to_local") else v).clone() for n, v in local.items()}

    def everything(self) -> dict[str, Tensor]:
        weights = {f"weight {name}": tensor for name, tensor in self.weights().items()}
        moments = {f"moment {name}": tensor for name, tensor in self.moments().items()}
        scaler = self.accelerator.scaler
        scale = {f"scale {k}": torch.tensor(v) for k, v in scaler.state_dict().items()} if scaler else {}
        return weights | moments | scale

    def expected_bytes(self) -> int:
        return bytes_to_save(self.accelerator, self.model, self.optimizer)

    def close(self) -> None:
        if self.case.zero:
            self.model.destroy()
        self.accelerator.free_memory()


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    return [
        n
        for n in sorted({*first, *second})
        if n not in first or n not in second or not torch.equal(first[n], second[n])
    ]


class Beside:
    """A checkpoint of now that is written while training goes on, and its files only after that."""

    def __init__(self, run: Run, folder: Path, origin: Origin, group: GlooGroup) -> None:
        self.trained, self.background = threading.Event(), Background()
        write = state_writer(run.accelerator, run.model, run.optimizer, HostCopy(), group.process_group)

        def later(target: Path) -> None:
            assert self.trained.wait(60)
            write(target)

        self.folder = folders.folder_of(folder, 3)
        self.background.start(lambda: folders.commit(folder, 3, later, {"step": 3}, origin, group))

    def finished(self) -> Path:
        self.trained.set()
        self.background.wait()
        self.background.close()
        return self.folder


def digests(folder: Path) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in manifest.read(folder)["files"].items()}


def check(name: str, folder: Path, group: GlooGroup) -> dict[str, Any]:
    case, ranks = Case(*name.split()), Ranks()
    run = Run(case, seed=1)
    origin = Origin("f", {}, case.kind, ranks.count)
    run.train(0, 3)
    saved_state = run.everything()

    def write(target: Path) -> None:
        state_writer(run.accelerator, run.model, run.optimizer)(target)

    expected_bytes = ranks.sum([run.expected_bytes()])[0]
    saved = folders.commit(folder, 3, write, {"step": 3}, origin, ranks)
    beside = Beside(run, folder.with_name(f"{folder.name} asynchronous"), origin, group)
    saving_changed = differing(saved_state, run.everything())
    losses = run.train(3, 6)
    asynchronous = beside.finished()
    final = run.everything()
    disk_full = commit_on_a_full_disk(folder, write, origin, ranks) if not case.lora else None
    run.close()

    again = Run(case, seed=2)
    fresh_differs = differing(saved_state, {f"weight {name}": t for name, t in again.weights().items()})
    load_state(again.accelerator, again.model, again.optimizer, folders.newest(folder, ranks, origin))
    loading_differs = differing(saved_state, again.everything())
    losses_again = again.train(3, 6)
    final_differs = differing(final, again.everything())

    live = {name.removeprefix("weight "): t for name, t in saved_state.items() if name.startswith("weight ")}
    result = {
        "parameters": len(live),
        "losses": losses,
        "losses_again": losses_again,
        "saving_changed": saving_changed,
        "fresh_differs": len(fresh_differs),
        "loading_differs": loading_differs,
        "final_differs": final_differs,
        "consolidated_differs": differing(live, trained_weights(saved)),
        "files": {str(p.relative_to(saved)): p.stat().st_size for p in saved.rglob("*") if p.is_file()},
        "asynchronous_differs": sorted(set(digests(saved).items()) ^ set(digests(asynchronous).items())),
        "beside": sorted(p.name for p in folder.iterdir()),
        "expected_bytes": expected_bytes,
        "disk_full": disk_full,
    }
    if case.kind in ("zero-2", "zero-3", "fsdp"):
        result["evil"] = load_evil(again, saved, ranks)
    again.close()
    return result


def commit_on_a_full_disk(parent: Path, write: Callable[[Path], None], origin: Origin, ranks: Ranks) -> str:
    """What a save says while no file of this process may grow beyond 4 kB, which stands for a disk without space."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        folders.commit(parent, 6, write, {}, origin, ranks, expected_bytes=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return "no error"


class Evil:
    """A pickle of this makes a file when it is loaded without restriction."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def load_evil(run: Run, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Load a checkpoint into which somebody who can rewrite the manifest too has put a pickle that runs code."""
    canary = folder.parent / "canary"
    target = next(
        p
        for p in sorted(folder.rglob("*"))
        if p.name in (".metadata", "zero_pp_rank_0_mp_rank_00_model_states.pt", "mp_rank_00_model_states.pt")
    )
    ranks.barrier()
    if ranks.index == 0:
        if target.name == ".metadata":
            target.write_bytes(pickle.dumps(Evil(canary)))
        else:
            torch.save({"module": {}, "evil": Evil(canary)}, target)
    ranks.barrier()
    verified = manifest.verify(folder)
    ranks.barrier()
    if ranks.index == 0:
        body = manifest.read(folder)
        body["files"][str(target.relative_to(folder))] = {
            "bytes": target.stat().st_size,
            "sha256": manifest.sha256(target),
        }
        (folder / manifest.NAME).write_text(json.dumps({**body, "sha256": manifest._digest(body)}))
    ranks.barrier()
    loads: list[Callable[[], Any]] = [lambda: trained_weights(folder)]
    if target.name.startswith(("mp_rank", ".metadata")):  # a file that every rank reads, so that none waits for another
        loads.append(lambda: load_state(run.accelerator, run.model, run.optimizer, folder))
    messages = []
    for load in loads:
        try:
            load()
            messages.append("no error")
        except Exception as error:
            messages.append(f"{type(error).__name__}: {error}")
    ranks.barrier()
    return {"file": target.name, "verified": verified, "messages": messages, "canary": canary.exists()}


def main() -> None:
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    group = GlooGroup(dist.get_rank(), dist.get_world_size(), timedelta(minutes=5))
    for name in sys.argv[2:]:
        try:
            result = check(name, folder / name, group)
        except Exception:
            result = {"error": traceback.format_exc()}
        (folder / f"{name} rank {dist.get_rank()}.json").write_text(json.dumps(result))
        if "error" in result:
            print(name, result["error"], file=sys.stderr, flush=True)
            os._exit(1)  # the other rank may be waiting in a collective; the launcher ends it
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
