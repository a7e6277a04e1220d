"""The parallelism of a run: the only module that uses Accelerate's processes. It knows kinds, not ZeRO stages.

On a CPU, Accelerate and its launchers silently start separate processes instead of ranks, or ignore FSDP: this is
refused here with a message.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import torch

if not torch.cuda.is_available():  # DeepSpeed looks for a GPU by itself and fails without one
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from train.engine.ddp_hook import average_each_parameter
from train.engine.deepspeed_ops import build_for_cpu
from train.engine.gather_weights import gathered, unsharded
from train.failure.background import GlooGroup
from train.failure.heartbeat import HEARTBEAT
from zerotune.common.errors import UserError
from zerotune.common.host_memory import keep_freed_memory
from zerotune.models.precision import DTYPES, Precision, choose_precision

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # rank 0 may tokenise for a long time while the others wait
# Process groups, kept until the process ends. A gloo group joins its threads when it is freed; if the last DDP model
# frees it, this happens with the GIL, for which one of these threads may wait: a deadlock.
_LEFT: list[Any] = []


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def runs_on_gpu() -> bool:
    """Whether there is a GPU and the launch allows it (not `use_cpu: true`)."""
    return torch.cuda.is_available() and not _flag("ACCELERATE_USE_CPU")


def training_precision(requested: str, gpu: bool) -> Precision:
    """As `choose_precision`. Raises UserError for fp16 on a CPU, which has no loss scaling."""
    if requested == "fp16" and not gpu:
        raise UserError("run.precision: fp16 needs a GPU; choose bf16, fp32 or auto")
    return choose_precision(requested, gpu)


def sharded_precision(dtype: torch.dtype) -> MixedPrecisionPolicy:
    """FSDP2's mixed precision: matrix products in `dtype`, gradients summed over micro-batches and ranks in float32.

    Accelerate's default also rounds the loss and the exchanged gradients to `dtype`.
    """
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def _clip_exactly(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """`clip_grad_norm_` with the norm summed in float64: a CPU's float32 sum over 10^5 elements is off by 10^-5."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    norm = float(torch.stack(norms).norm())
    if norm > limit and norm != float("inf"):
        torch._foreach_mul_(gradients, limit / norm)
    return norm


class Runtime:
    """The ranks of a run, and their collective operations. Satisfies `train.protocols.Ranks`."""

    def __init__(self, precision: str, clip_norm: float) -> None:
        cuda = runs_on_gpu()
        deepspeed = _flag("ACCELERATE_USE_DEEPSPEED")
        if _flag("ACCELERATE_USE_FSDP") and not cuda:
            raise UserError(
                "FSDP needs GPUs: on a CPU, Accelerate silently ignores it and the ranks would never synchronise. Use "
                "accelerate_configs/cpu_ddp.yaml or zero2.yaml"
            )
        if deepspeed and not cuda and _flag("ACCELERATE_USE_CPU"):
            raise UserError("Accelerate ignores DeepSpeed if use_cpu is true: remove `use_cpu` from its config")
        if deepspeed and not cuda:
            build_for_cpu()
        local = int(os.environ.get("LOCAL_RANK", 0))
        if cuda and local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no GPU: start at most {torch.cuda.device_count()} per machine"
            )
        self.precision = training_precision(precision, cuda)
        group = InitProcessGroupKwargs(backend="nccl" if cuda else "gloo", timeout=COLLECTIVE_TIMEOUT)
        self.accelerator = Accelerator(
            mixed_precision="no" if self.precision == "fp32" else self.precision,
            cpu=not cuda and not deepspeed,
            kwargs_handlers=[group] if "LOCAL_RANK" in os.environ else [],
        )
        self.clip_norm = clip_norm
        self.index: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.main: bool = self.accelerator.is_main_process
        # Batch scripts set the number of processes they requested: launchers may start fewer, or separate ones.
        launched = int(os.environ.get("ZEROTUNE_RANKS") or os.environ.get("WORLD_SIZE") or 1)
        if launched != self.count:
            raise UserError(
                f"{launched} processes were launched, but this one belongs to a group of {self.count}: they would "
                "train separate models. Use one of accelerate_configs/*.yaml"
            )
        if self.accelerator.distributed_type == DistributedType.FSDP:
            fsdp = self.accelerator.state.fsdp_plugin
            if fsdp.fsdp_version != 2:
                raise UserError("fsdp_config.fsdp_version: only 2 is supported; see accelerate_configs/fsdp2.yaml")
            if self.precision != "fp32":
                fsdp.mixed_precision_policy = sharded_precision(self.dtype)
        self.deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        if self.deepspeed:
            plugin = self.accelerator.state.deepspeed_plugin.deepspeed_config
            plugin["gradient_clipping"] = clip_norm
            plugin["gradient_accumulation_steps"] = 1  # the loop accumulates, and marks the last backward
            self.accelerator.gradient_accumulation_steps = 1

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return DTYPES[self.precision]

    @property
    def kind(self) -> str:
        """The kind of sharding by name, for run.json and manifests."""
        if self.deepspeed:
            return f"zero-{self.accelerator.state.deepspeed_plugin.zero_stage}"
        return {"NO": "single", "MULTI_CPU": "ddp", "MULTI_GPU": "ddp", "FSDP": "fsdp"}[
            self.accelerator.distributed_type.name
        ]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sum over all ranks, in float64."""
        if self.count == 1:
            return list(values)
        joined = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(joined)
        return [float(x) for x in joined.tolist()]

    def barrier(self) -> None:
        self.accelerator.wait_for_everyone()

    def second_group(self) -> GlooGroup:
        """Another process group of all ranks, for a second thread. A collective, called once."""
        group = GlooGroup(self.index, self.count, COLLECTIVE_TIMEOUT)
        _LEFT.append(group.process_group)
        return group

    def gather(self, items: list[str]) -> list[str]:
        """The items of all ranks, on every rank."""
        return list(gather_object(items)) if self.count > 1 else items

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Model and optimizer, sharded over the ranks."""
        for module in model.modules():  # the inner model, so that generation and validation beat as well
            if isinstance(module, PreTrainedModel):
                module.register_forward_pre_hook(lambda *_: HEARTBEAT.beat())
        prepared = self.accelerator.prepare(model, optimizer)
        if self.device.type == "cpu" and self.count > 2:
            average_each_parameter(prepared[0])
        return prepared[0], prepared[1]

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The model without wrappers; its weights may be sharded."""
        unwrapped: nn.Module = self.accelerator.unwrap_model(model)
        return unwrapped

    @contextlib.contextmanager
    def micro_step(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Context of one micro-batch's forward and backward; ranks exchange gradients only in the last one."""
        self.accelerator.gradient_state._set_sync_gradients(last)  # DeepSpeed reads its boundary from here
        with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
            yield

    def backward(self, sums: Mapping[str, Tensor], counts: Mapping[str, float]) -> None:
        """Backward of the sum over terms of (local sum / global count).

        Every backend averages over ranks, hence `* self.count`.
        """
        self.accelerator.backward(sum(sums[name] * (self.count / counts[name]) for name in sums if counts[name] > 0))

    def step(self, model: nn.Module, optimizer: Any) -> float:
        """Clip gradients, update, and clear gradients.

        Returns the global gradient norm before clipping; if it is not finite, the update is skipped.
        """
        if self.deepspeed:  # it has clipped and updated in the last backward, and skips a non-finite norm
            norm = self.accelerator.clip_grad_norm_(model.parameters(), 0.0)
            return float("nan") if norm is None else float(norm)
        limit = self.clip_norm if self.clip_norm > 0 else float("inf")
        clip = _clip_exactly if self.device.type == "cpu" else self.accelerator.clip_grad_norm_
        norm = float(clip(model.parameters(), limit))
        if norm == norm and norm != float("inf"):
            optimizer.step()
        elif self.accelerator.scaler is not None:
            optimizer.step()  # the scaler skips the update and lowers its scale
        optimizer.zero_grad()
        return norm

    def seed(self, seed: int, step: int, number: int) -> None:
        """Seed dropout for this rank's micro-batch `number`, as a function of the arguments.

        Micro-batches are counted over all ranks, so that dropout does not depend on the number of ranks.
        """
        key = (seed, step, number * self.count + self.index)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(digest, "big"))

    def memory_gb(self) -> float:
        """Peak memory of this rank: of its GPU if there is one, else of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside, every rank has all weights. Yields the model without wrappers, in training's precision."""
        inner = self.unwrap(model)
        whole = {"zero-3": gathered, "fsdp": unsharded}.get(self.kind, contextlib.nullcontext)
        with whole(model), self.accelerator.autocast():
            yield inner

    @contextlib.contextmanager
    def whole_copy(self, model: nn.Module) -> Iterator[None]:
        """Inside, every rank has all weights of a frozen model with sharded weights."""
        with gathered(model) if self.kind == "zero-3" else contextlib.nullcontext(), self.accelerator.autocast():
            yield

    def close(self) -> None:
        """Leave the process group: collectives are no longer possible."""
        unset_hf_deepspeed_config()  # models loaded later are not sharded, also after ZeRO-3
        if self.count > 1 and torch.distributed.is_initialized():
            _LEFT.append(torch.distributed.group.WORLD)
            torch.distributed.destroy_process_group()
