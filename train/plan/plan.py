"""The plan of a run: memory of the fullest rank, batches, time, disk and communication."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name

import torch
from torch import nn

from train.config import Config
from train.data.token_table import cache_root
from train.engine.flops import known_peak, model_flops_per_token
from train.objectives import objective_class
from train.plan import activations
from train.plan.activations import Activations, Shape, loss_bytes, measure
from train.plan.data import CACHED_BYTES, tokens_of
from train.plan.further import Further
from train.plan.layout import Layout
from train.plan.states import StateBytes, States, at_peak
from train.plan.weights import Weight, precision_of, tuned_model, weights_of
from train.protocols import Objective
from train.tuning.describe import base_of
from zerotune.common.byte_sizes import CUDA_CONTEXT
from zerotune.models import attention
from zerotune.models.precision import DTYPES
from zerotune.models.token_statistics import VALUE_HEAD

FRAGMENTED = 0.04  # of the GPU: what the caching allocator cannot use; an estimate, not measured
FAILED_INSIDE = (RuntimeError, ValueError, NotImplementedError, TypeError, AttributeError, KeyError, IndexError)


@dataclass(frozen=True)
class Machine:
    """gpu: its name in `train.engine.flops`, for its speed. memory: bytes of a GPU. utilization: assumed MFU."""

    memory: int
    gpu: str = ""
    utilization: float = 0.4


@dataclass(frozen=True)
class Plan:
    """parts: bytes of the fullest rank's GPU. host: bytes on the host, for each rank. unknown: what is not in it.

    shape: of the largest micro-batch. is_whole: whether parts have all that matters. phase: in which the parts are at
    their peak. seconds: of the run. step_tokens: over all ranks. is_estimated: whether the tokens are, from the sizes
    of files. sent: bytes that a rank sends in a step. merged: bytes of the merged model, 0 without one. Those that
    cannot be computed are None.
    """

    name: str
    config: Config
    layout: Layout
    shape: Shape
    parts: dict[str, int]
    phase: str
    is_whole: bool
    host: int
    trained: int
    total: int
    flops_per_token: float | None
    step_tokens: int
    tokens: int | None
    steps: int | None
    is_estimated: bool
    seconds: float | None
    sent: int
    checkpoint: int
    merged: int
    free_disk: int
    token_cache: int | None
    free_for_cache: int
    conflicts: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    not_planned: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        return sum(self.parts.values())

    @property
    def checkpoints(self) -> int:
        """How many there are at most: old ones are removed after a new one is written; the best one can be older."""
        chosen = self.config.checkpoint
        return chosen.keep_last + chosen.keep_best + 1

    @property
    def disk(self) -> int:
        """Bytes of the run folder at most, before the last checkpoint is written or while the model is merged."""
        return (self.checkpoints - 1) * self.checkpoint + max(self.checkpoint, self.merged)

    @property
    def busy(self) -> int:
        """How many GPUs get a row in each step, if all rows have the full length."""
        return busy(self.config, self.step_tokens, self.layout.ranks)

    def fits(self, machine: Machine) -> bool | None:
        """None where it is not known: missing parts could be too much, and the launch files could lower others."""
        if self.not_planned:
            return None
        return False if self.memory > machine.memory else True if self.is_whole else None


@dataclass
class Model:
    """A tuned model, measured once: only the activations depend on the kind of sharding.

    recomputed_flops: of a token, with checkpointing, beside flops_per_token. merged: as in `Plan`.
    """

    name: str
    config: Config
    weights: list[Weight]
    further: Further
    flops_per_token: float
    recomputed_flops: float
    merged: int
    can_pack: bool = True
    unknown: tuple[str, ...] = ()
    is_timed: bool = True
    activations: dict[tuple[str, int, int, int], tuple[list[Activations], int]] = field(default_factory=dict)


def read_model(config: Config, name: str = "") -> Model:
    """Its weights and FLOPs. Tokens are taken for learned, and rows for full: the data is not read."""
    model, quantized = tuned_model(config)
    flops = model_flops_per_token(model, (config.data.max_length_tokens + 1) / 2)
    forward_of_attention = (flops - model_flops_per_token(model, 0)) / 3
    unknown, is_timed = [], True
    if any(p.ndim > 2 and "experts" in name.split(".") for name, p in model.named_parameters()):
        unknown.append("the work and time of a mixture of experts")
        is_timed = False
    kind, further = objective_class(config.objective), Further()
    can_pack = getattr(kind, "readout", attention).can_pack(base_of(model))
    if config.spec.planned:
        further = resolve_name(config.spec.planned)(config, model)
    elif kind.add_modules is not Objective.add_modules:
        unknown.append(f"modules that the objective {config.objective} adds")
    if config.tuning.quantization == "int8":
        unknown.append("what products of int8 matrices keep for the backward pass")
    unknown += further.unknown
    weights = list(weights_of(model, config, quantized))
    merged = _merged_bytes(model, weights, config)
    # The layers' forward pass: 2 FLOPs for a weight, trained or frozen. The output layer is outside them.
    again = 2 * sum(w.size for w in weights if w.unit and len(w.shape) == 2) + forward_of_attention
    return Model(
        name or config.model.name, config, weights, further, flops, again, merged, can_pack, tuple(unknown), is_timed
    )


def _merged_bytes(model: nn.Module, weights: list[Weight], config: Config) -> int:
    """Of the folder that training ends with; what a tuning adds counts too."""
    if not config.merge.at_end:
        return 0
    stored: torch.dtype = (
        base_of(model).config.dtype or torch.float32
    )  # files can have another type than their config.json says
    dtype = stored if config.merge.weights == "auto" else DTYPES[config.merge.weights]
    return dtype.itemsize * sum(w.size for w in weights if VALUE_HEAD not in w.name.split("."))


def plan(
    model: Model, layout: Layout, machine: Machine, conflicts: tuple[str, ...] = (), missing: tuple[str, ...] = ()
) -> Plan:
    """The plan of a run with this layout. missing: settings of its files that change the memory and are not in it."""
    config, weights = model.config, model.weights
    rollout = model.further.rollout
    step = rollout.step_tokens if rollout else config.batch.tokens_per_step
    micro_batches = -(-step // (config.batch.tokens_per_micro_batch * layout.ranks))
    layout = replace(layout, micro_batches=micro_batches)
    states = at_peak(weights, layout, _state_bytes(config))
    networks, loss = _activations(model, layout)
    checkpointing = config.model.gradient_checkpointing
    kept = activations.at_peak(networks, checkpointing, loss) if networks else {"loss": loss}
    phase, parts = _parts(model, states, layout, machine, kept)
    unknown = list(model.unknown)
    if not networks:
        unknown.append("activations: this model does not run without values")
    epoch = tokens_of(config)
    tokens, steps, is_estimated = (
        _length(config, epoch) if rollout is None else (None, config.duration.max_steps, False)
    )
    if rollout is not None:
        unknown.append("time: that of sampling depends on the lengths of the responses")
    elif tokens is None:
        unknown.append("steps and time: the data is not here, or compressed; set duration.max_steps or max_tokens")
    return Plan(
        name=model.name,
        config=config,
        layout=layout,
        shape=micro_batch(config, model.can_pack),
        parts=parts,
        phase=phase,
        is_whole=bool(networks) and not model.further.unknown,
        host=states.on_host,
        trained=sum(w.size for w in weights if w.is_trained),
        total=sum(w.size for w in weights),
        flops_per_token=model.flops_per_token if model.is_timed else None,
        step_tokens=step,
        tokens=tokens,
        steps=steps,
        is_estimated=is_estimated,
        seconds=_seconds(model, layout, machine, tokens),
        sent=sent_bytes(weights, layout),
        checkpoint=checkpoint_bytes(weights, layout, _state_bytes(config)),
        merged=model.merged,
        free_disk=_free(Path(config.run.folder)),
        token_cache=None if epoch is None or config.data.streaming else epoch * CACHED_BYTES,
        free_for_cache=_free(cache_root(config.data)),
        conflicts=conflicts,
        unknown=(*unknown, *missing),
        not_planned=missing,
    )


def least(model: Model, layout: Layout) -> int:
    """Bytes that a run needs in any case."""
    return at_peak(model.weights, layout, _state_bytes(model.config)).in_update + CUDA_CONTEXT


def _parts(
    model: Model, states: States, layout: Layout, machine: Machine, kept: dict[str, int]
) -> tuple[str, dict[str, int]]:
    """(name of the phase that needs most, its parts).

    kept: by the forward and backward pass.
    """
    shared = {
        "weights": states.weights,
        "master weights": states.master,
        "optimizer": states.optimizer,
        **model.further.always(model.weights, layout),
        "CUDA context, NCCL (estimate)": CUDA_CONTEXT,
        "fragmentation (estimate)": round(FRAGMENTED * machine.memory),
    }
    quantized = max((w.size for w in model.weights if w.is_quantized), default=0)
    backward = {
        "gradients": states.gradients,
        "communication buckets": states.buckets,
        "gathered weights": states.gathered,
        "a dequantised matrix": layout.item * quantized,
        **kept,
    }
    free = machine.memory - sum(shared.values())
    phases = {
        "backward pass": backward,
        "update": {"gradients": states.gradients, "update": states.update},
        "sampling": model.further.while_sampling(model.weights, layout, free),
    }
    name = max(phases, key=lambda phase: sum(phases[phase].values()))
    return name, {part: size for part, size in {**shared, **phases[name]}.items() if size}


def _state_bytes(config: Config) -> StateBytes:
    found: StateBytes = resolve_name(config.optim.spec.state_bytes or "train.engine.optimizer_state:adamw")
    return found


def micro_batch(config: Config, can_pack: bool) -> Shape:
    """The largest micro-batch of the recipe. Packed rows are taken as one document.

    can_pack: whether the model can.
    """
    micro, longest = config.batch.tokens_per_micro_batch, config.data.max_length_tokens
    if config.batch.layout != "padded" and config.tuning.spec.can_pack and can_pack:
        return Shape(1, max(micro, longest))
    return Shape(max(1, micro // longest), longest + config.tuning.extra_positions, masked=True)


def _activations(model: Model, layout: Layout) -> tuple[list[Activations], int]:
    """(activations of each network, none if they cannot be measured; bytes of the loss), once for each shape."""
    shape, kind = micro_batch(model.config, model.can_pack), layout.kind.partition("-")[0]
    key = (kind, shape.rows, shape.length, layout.item)
    if key not in model.activations:
        tuned, _ = tuned_model(model.config)
        loss = loss_bytes(tuned, shape.tokens, layout.item)
        # `measure` spoils them.
        networks = [tuned] if model.further.body is None else [tuned, model.further.body()]
        model.activations[key] = (_measured(networks, shape, layout.item, kind), loss)
    return model.activations[key]


def _measured(networks: list[nn.Module], shape: Shape, item: int, kind: str) -> list[Activations]:
    try:
        return [measure(network, shape, item, kind) for network in networks]
    except FAILED_INSIDE:  # raised in the code of the model
        return []


def _length(config: Config, epoch: int | None) -> tuple[int | None, int | None, bool]:
    """(tokens, steps, whether they are estimated) of the run. epoch: estimated tokens."""
    duration, step = config.duration, config.batch.tokens_per_step
    known = [limit for limit in (duration.max_tokens, duration.max_steps and duration.max_steps * step) if limit]
    estimated = round(epoch * duration.max_epochs) if epoch and duration.max_epochs else None
    if not known and estimated is None:
        return None, None, False
    tokens = min([*known, *([] if estimated is None else [estimated])])
    return tokens, -(-tokens // step), tokens not in known


def _seconds(model: Model, layout: Layout, machine: Machine, tokens: int | None) -> float | None:
    peak = (model.config.watch.peak_tflops or 0) * 1e12
    if not peak and machine.gpu:
        peak = known_peak(machine.gpu, DTYPES[precision_of(model.config)]) or 0
    if not peak or tokens is None or not model.is_timed:
        return None
    flops = model.flops_per_token + (model.recomputed_flops if model.config.model.gradient_checkpointing else 0)
    speed = peak * machine.utilization * busy(model.config, model.config.batch.tokens_per_step, layout.ranks)
    return tokens * flops / speed


def busy(config: Config, step_tokens: int, ranks: int) -> int:
    """As `Plan.busy`."""
    return min(ranks, max(1, step_tokens // config.data.max_length_tokens))


def sent_bytes(weights: list[Weight], layout: Layout) -> int:
    """Bytes that a rank sends in a step, with rings: (N - 1) / N of what is reduced or gathered, each time."""
    if layout.ranks == 1:
        return 0
    share = (layout.ranks - 1) / layout.ranks
    trained = sum(w.size for w in weights if w.is_trained)
    whole = sum(w.size for w in weights)
    if layout.kind == "ddp":
        return round(2 * share * sum(w.bytes for w in weights if w.is_trained))
    if layout.kind == "zero-3":  # gathered for the forward and the backward pass, gradients scattered
        return round(share * layout.item * layout.micro_batches * (2 * whole + trained))
    if layout.kind == "fsdp":  # gradients in float32, once
        return round(share * (2 * layout.item * whole * layout.micro_batches + 4 * trained))
    if layout.stage:
        reductions = layout.micro_batches if layout.kind == "zero-2" else 1
        return round(share * layout.item * trained * (1 + reductions * (1 + layout.allreduces)))
    raise ValueError(f"sharding {layout.kind} on {layout.ranks} ranks")


def checkpoint_bytes(weights: list[Weight], layout: Layout, state_bytes: StateBytes) -> int:
    """Of one checkpoint, all ranks together: trained weights, and the optimizer's state."""
    alone = replace(layout, kind="single", ranks=1)
    trained = [w for w in weights if w.is_trained]
    saved = sum(4 * w.size if layout.stage else w.bytes for w in trained)  # of ZeRO the master weights
    return saved + at_peak(trained, alone, state_bytes).optimizer


def _free(path: Path) -> int:
    """Bytes on the disk of a folder, which need not exist yet."""
    path = path.absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def with_changes(config: Config, changes: dict[str, object]) -> Config:
    """The recipe with other values; keys as on the command line."""
    for key, value in changes.items():
        section, name = key.split(".")
        config = replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})
    return config
