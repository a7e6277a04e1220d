"""The plan of a run: memory of the fullest rank, batches, time, disk and communication."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name

from train.config import Config
from train.engine.flops import known_peak, model_flops_per_token
from train.plan.activations import Activations, Shape, loss_bytes, measure
from train.plan.layout import Layout
from train.plan.states import StateBytes, States, at_peak
from train.plan.weights import Weight, precision_of, tuned_model
from zerotune.models.precision import DTYPES

GB = 10**9
CONTEXT = 800_000_000  # bytes: CUDA context, cuBLAS and NCCL buffers; an estimate, not measured
FRAGMENTED = 0.04  # of the GPU: what the caching allocator cannot use; an estimate, not measured


@dataclass(frozen=True)
class Machine:
    """gpu: its name in `train.engine.flops`, for its speed. memory: bytes of a GPU. utilization: assumed MFU."""

    memory: int
    gpu: str = ""
    utilization: float = 0.4


@dataclass(frozen=True)
class Plan:
    """parts: bytes of the fullest rank's GPU. host: bytes on the host, for each rank. unknown: what is not in it.

    seconds: of the run. sent: bytes that a rank sends in a step. Those that cannot be computed are None.
    """

    config: Config
    layout: Layout
    parts: dict[str, int]
    host: int
    trained: int
    total: int
    flops_per_token: float
    tokens: int | None
    steps: int | None
    seconds: float | None
    sent: int
    checkpoint: int
    free_disk: int
    conflicts: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        return sum(self.parts.values())

    def fits(self, machine: Machine) -> bool:
        return self.memory <= machine.memory


@dataclass
class Model:
    """A tuned model, measured once: only the activations depend on the kind of sharding."""

    config: Config
    weights: list[Weight]
    flops_per_token: float
    unknown: tuple[str, ...] = ()
    activations: dict[tuple[str, int, int], tuple[Activations | None, int]] = field(default_factory=dict)


def read_model(config: Config) -> Model:
    """Its weights and FLOPs. Tokens are taken for learned, and rows for full: the data is not read."""
    model, weights = tuned_model(config)
    length = config.data.max_length_tokens
    flops = model_flops_per_token(model, (length + 1) / 2)
    unknown = []
    if config.spec.adds_modules:
        unknown.append(f"models and modules that the objective {config.objective} adds")
    if config.tuning.quantization != "none":
        unknown.append("matrices that are dequantised for a product")
    return Model(config, weights, flops, tuple(unknown))


def plan(model: Model, layout: Layout, machine: Machine, conflicts: tuple[str, ...] = ()) -> Plan:
    """The plan of a run with this layout."""
    config, weights = model.config, model.weights
    states = at_peak(weights, layout, _state_bytes(config))
    activations, loss = _activations(model, layout)
    checkpointing = config.model.gradient_checkpointing
    parts = _parts(states, activations.total(checkpointing) if activations else 0, loss)
    parts["CUDA context, NCCL (estimate)"] = CONTEXT
    parts["fragmentation (estimate)"] = round(FRAGMENTED * machine.memory)
    unknown = list(model.unknown)
    if activations is None:
        unknown.append("activations: this model does not run without values")
    tokens, steps = _length(config)
    if tokens is None:
        unknown.append("steps and time: the data is not tokenised here; set duration.max_steps or max_tokens")
    trained = sum(w.size for w in weights if w.is_trained)
    return Plan(
        config=config,
        layout=layout,
        parts={name: size for name, size in parts.items() if size},
        host=states.on_host,
        trained=trained,
        total=sum(w.size for w in weights),
        flops_per_token=model.flops_per_token,
        tokens=tokens,
        steps=steps,
        seconds=_seconds(model, layout, machine, tokens),
        sent=sent_bytes(weights, layout),
        checkpoint=checkpoint_bytes(weights, layout, _state_bytes(config)),
        free_disk=shutil.disk_usage(_existing(Path(config.run.folder))).free,
        conflicts=conflicts,
        unknown=tuple(unknown),
    )


def _parts(states: States, activations: int, loss: int) -> dict[str, int]:
    """The larger of backward pass and update, by part."""
    shared = {
        "weights": states.weights,
        "master weights": states.master,
        "optimizer": states.optimizer,
        "gradients": states.gradients,
    }
    backward = {
        "communication buckets": states.buckets,
        "gathered weights": states.gathered,
        "activations": activations,
        "loss": loss,
    }
    if states.update > sum(backward.values()):
        return {**shared, "update": states.update}
    return {**shared, **backward}


def _state_bytes(config: Config) -> StateBytes:
    found: StateBytes = resolve_name(config.optim.spec.state_bytes or "train.engine.optimizer_state:adamw")
    return found


def micro_batch(config: Config) -> Shape:
    """The largest micro-batch of the recipe. Packed rows are taken as one document."""
    micro, longest = config.batch.tokens_per_micro_batch, config.data.max_length_tokens
    extra = config.tuning.extra_positions
    if config.batch.layout != "padded" and config.tuning.spec.can_pack:
        return Shape(1, micro)
    return Shape(max(1, micro // longest), longest + extra, masked=True)


def _activations(model: Model, layout: Layout) -> tuple[Activations | None, int]:
    shape, casts = micro_batch(model.config), layout.kind in ("single", "ddp")
    key = ("casts" if casts else "cast", shape.rows, shape.length)
    if key not in model.activations:
        tuned, _ = tuned_model(model.config)
        loss = loss_bytes(tuned, shape.tokens, layout.item)
        try:
            model.activations[key] = (measure(tuned, shape, layout.item, casts), loss)
        except (RuntimeError, ValueError, NotImplementedError, TypeError, AttributeError):  # raised inside the model
            model.activations[key] = (None, loss)
    return model.activations[key]


def _length(config: Config) -> tuple[int | None, int | None]:
    """(tokens, steps) of the run, where the recipe says so itself."""
    duration, step = config.duration, config.batch.tokens_per_step
    known = [limit for limit in (duration.max_tokens, duration.max_steps and duration.max_steps * step) if limit]
    if not known:
        return None, None
    return min(known), -(-min(known) // step)


def _seconds(model: Model, layout: Layout, machine: Machine, tokens: int | None) -> float | None:
    peak = (model.config.watch.peak_tflops or 0) * 1e12
    if not peak and machine.gpu:
        peak = known_peak(machine.gpu, DTYPES[precision_of(model.config)]) or 0
    if not peak or tokens is None:
        return None
    recomputed = 4 / 3 if model.config.model.gradient_checkpointing else 1.0
    return tokens * model.flops_per_token * recomputed / (peak * machine.utilization * layout.ranks)


def sent_bytes(weights: list[Weight], layout: Layout) -> int:
    """Bytes that a rank sends in a step of one micro-batch, with rings: (N - 1) / N of what is reduced or gathered."""
    if layout.ranks == 1:
        return 0
    share = (layout.ranks - 1) / layout.ranks
    trained = sum(w.size for w in weights if w.is_trained)
    whole = sum(w.size for w in weights)
    if layout.kind == "ddp":
        return round(2 * share * sum(w.bytes for w in weights if w.is_trained))
    if layout.kind == "zero-3":  # gathered for the forward and the backward pass, gradients scattered
        return round(share * layout.item * (2 * whole + trained))
    if layout.kind == "fsdp":  # gradients in float32
        return round(share * (2 * layout.item * whole + 4 * trained))
    reduced = 1 if layout.kind == "zero-2" else 2
    return round(share * layout.item * trained * (1 + reduced))


def checkpoint_bytes(weights: list[Weight], layout: Layout, state_bytes: StateBytes) -> int:
    """Of one checkpoint, all ranks together: trained weights in float32, and the optimizer's state."""
    alone = replace(layout, kind="single", ranks=1)
    trained = [w for w in weights if w.is_trained]
    return sum(4 * w.size for w in trained) + at_peak(trained, alone, state_bytes).optimizer


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def with_changes(config: Config, changes: dict[str, object]) -> Config:
    """The recipe with other values; keys as on the command line."""
    for key, value in changes.items():
        section, name = key.split(".")
        config = replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})
    return config
