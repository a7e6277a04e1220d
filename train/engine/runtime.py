"""How the run is spread: the one place that speaks to Accelerate. It knows distributed kinds, and no ZeRO stage.

What Accelerate and its launchers do without a word on a CPU (plain single processes in place of two ranks, FSDP
ignored) is
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

from train.engine.ddp_hook import average_parameters_alone
from train.engine.gathering import gathered, unsharded
from train.engine.native_ops import build_for_cpu
from train.failure.background import GlooGroup
from train.failure.heartbeat import HEARTBEAT
from zerotune.common.errors import UserError
from zerotune.common.host_memory import keep_freed_memory
from zerotune.models.precision import DTYPES, Precision, choose_precision

COLLECTIVE_TIMEOUT = timedelta(hours=2)  # rank 0 may tokenise for long while the others wait
# Groups kept until the process ends, also when they were left. A gloo group joins its threads when it is freed. Freed
# by the last DDP model it does so under the interpreter's lock, for which one of the threads may be waiting: a rank
# never ended.
_LEFT: list[Any] = []


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def runs_on_gpu() -> bool:
    """Whether there is a GPU and the launch has not turned it down (`use_cpu: true`)."""
    return torch.cuda.is_available() and not _flag("ACCELERATE_USE_CPU")


def training_precision(requested: str, gpu: bool) -> Precision:
    """As `choose_precision`. Raises UserError for fp16 on a CPU, which has no loss scaling."""
    if requested == "fp16" and not gpu:
        raise UserError("run.precision: fp16 needs a GPU; choose bf16, fp32 or auto")
    return choose_precision(requested, gpu)


def sharded_precision(dtype: torch.dtype) -> MixedPrecisionPolicy:
    """FSDP2's mixed precision: products in `dtype`, gradients summed over micro-batches and ranks in float32.

    Accelerate's own would round the loss and the gradients on their way between ranks to `dtype` as well.
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


def _beat(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    HEARTBEAT.beat()


class Runtime:
    """The processes of the run and what they do together. Satisfies `train.protocols.Ranks`."""

    def __init__(self, precision: str, clip_norm: float) -> None:
        cuda = runs_on_gpu()
        deepspeed = _flag("ACCELERATE_USE_DEEPSPEED")
        if _flag("ACCELERATE_USE_FSDP") and not cuda:
            raise UserError(
                "FSDP needs GPUs: on a CPU Accelerate ignores it without a word and the ranks would never synchronise. "
                "Use accelerate_configs/cpu_ddp.yaml or zero2.yaml"
            )
        if deepspeed and not cuda and _flag("ACCELERATE_USE_CPU"):
            raise UserError("DeepSpeed is ignored where use_cpu is true: remove `use_cpu` from the accelerate config")
        if deepspeed and not cuda:
            build_for_cpu()
        local = int(os.environ.get("LOCAL_RANK", 0))
        if cuda and local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; start as many"
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
        # A batch script says how many it asked for: launchers may start fewer, or separate ones.
        launched = int(os.environ.get("ZEROTUNE_RANKS") or os.environ.get("WORLD_SIZE") or 1)
        if launched != self.count:
            raise UserError(
                f"{launched} processes were launched but each believes to be one of {self.count}: they would train "
                "separate models. Use one of accelerate_configs/*.yaml"
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
            plugin["gradient_accumulation_steps"] = 1  # the loop accumulates, and says which backward is the last
            self.accelerator.gradient_accumulation_steps = 1

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return DTYPES[self.precision]

    @property
    def kind(self) -> str:
        """The distributed kind by name, for records and manifests."""
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
        """Wait for all."""
        self.accelerator.wait_for_everyone()

    def second_group(self) -> GlooGroup:
        """The same processes once more, for a thread beside the main one. Called by all ranks together, once."""
        group = GlooGroup(self.index, self.count, COLLECTIVE_TIMEOUT)
        _LEFT.append(group.process_group)
        return group

    def gather(self, items: list[str]) -> list[str]:
        """The items of all ranks, on every rank."""
        return list(gather_object(items)) if self.count > 1 else items

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Model and optimizer, spread over the ranks."""
        for module in model.modules():  # under whatever wraps it: generation and validation are seen to get on as well
            if isinstance(module, PreTrainedModel):
                module.register_forward_pre_hook(_beat)
        prepared = self.accelerator.prepare(model, optimizer)
        if self.device.type == "cpu" and self.count > 2:
            average_parameters_alone(prepared[0])
        return prepared[0], prepared[1]

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The model inside; its weights may still be sharded."""
        unwrapped: nn.Module = self.accelerator.unwrap_model(model)
        return unwrapped

    @contextlib.contextmanager
    def micro_step(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Forward and backward of one micro-batch go in here; gradients are exchanged with the last one only."""
        self.accelerator.gradient_state._set_sync_gradients(last)  # DeepSpeed's boundary is read from here
        with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
            yield

    def backward(self, sums: Mapping[str, Tensor], counts: Mapping[str, float]) -> None:
        """Backward of the sum over terms of (local sum / global count).

        Ranks are averaged by every backend, hence `* self.count`.
        """
        self.accelerator.backward(sum(sums[name] * (self.count / counts[name]) for name in sums if counts[name] > 0))

    def step(self, model: nn.Module, optimizer: Any) -> float:
        """Clip, update, clear.

        Returns the global gradient norm before clipping; where it is not finite nothing was updated.
        """
        if self.deepspeed:  # has clipped and stepped inside the last backward; it skips a non-finite norm by itself
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
        """Start the dropout stream of this rank's micro-batch `number`: a function, not a state.

        Micro-batches are counted over all ranks: the same ones draw the same, however many ranks share them.
        """
        key = (seed, step, number * self.count + self.index)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(digest, "big"))

    def memory_gb(self) -> float:
        """Highest memory so far on this rank: the GPU's where there is one, else the process's."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    @contextlib.contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside, every rank has all weights: the model without its wrapper, computing as in training."""
        inner = self.unwrap(model)
        whole = {"zero-3": gathered, "fsdp": unsharded}.get(self.kind, contextlib.nullcontext)
        with whole(model), self.accelerator.autocast():
            yield inner

    @contextlib.contextmanager
    def whole_copy(self, model: nn.Module) -> Iterator[None]:
        """Inside, every rank has all weights of a frozen model that was loaded in shards."""
        with gathered(model) if self.kind == "zero-3" else contextlib.nullcontext(), self.accelerator.autocast():
            yield

    def close(self) -> None:
        """Leave the process group: what follows is each process's own."""
        unset_hf_deepspeed_config()  # models loaded from here on are whole again, also after ZeRO-3
        if self.count > 1 and torch.distributed.is_initialized():
            _LEFT.append(torch.distributed.group.WORLD)
            torch.distributed.destroy_process_group()
