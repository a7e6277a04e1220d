"""What to change so that a run fits, and the fastest setting that fits: as options to copy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import product

from train.config import Config
from train.plan.launch import conflicts, layout_of, read_files
from train.plan.layout import Layout
from train.plan.plan import Machine, Model, least, plan, read_model, with_changes

CHECKPOINTING: dict[str, object] = {"model.gradient_checkpointing": True}
SHARDED = ("zero1", "zero2", "zero3")
OFFLOADED = ("zero2_offload", "zero3_offload")
Change = tuple[str, dict[str, object]]  # (accelerate config or "", keys of the recipe)
PER_NODE, MOST_NODES = 8, 128


def smaller_batches(config: Config) -> list[int]:
    """Smaller values of batch.tokens_per_micro_batch, down to one row."""
    sizes, size = [], config.batch.tokens_per_micro_batch // 2
    while size >= config.data.max_length_tokens:
        sizes.append(size)
        size //= 2
    return sizes


def smallest_change(model: Model, layout: Layout, machine: Machine) -> str | None:
    """Options with which the run fits, the first in an order from cheap to costly, then more GPUs; None if none of them
    is enough.
    """
    for launch, keys in _changes(model.config, layout):
        if _fits(model, layout, machine, launch, keys):
            return _words(launch, keys)
    keys = {**CHECKPOINTING, "batch.tokens_per_micro_batch": [0, *smaller_batches(model.config)][-1]}
    keys = {key: value for key, value in keys.items() if value}
    nodes = 1
    while nodes <= MOST_NODES:
        more = dataclasses.replace(layout, ranks=nodes * PER_NODE)
        if more.ranks > layout.ranks and _fits(model, more, machine, SHARDED[-1], keys):
            return f"--nodes {nodes} --gpus-per-node {PER_NODE} {_words(SHARDED[-1], keys)}"
        nodes *= 2
    return None


def fastest(model: Model, layout: Layout, machine: Machine) -> str | None:
    """Options of the fastest setting that fits, by an order: no offload, no recomputation, least communication, large
    micro-batches. The recipe learns the same. "" if it is this one.
    """
    launches = [("one_gpu",)] if layout.ranks == 1 else [("ddp",), ("zero1",), ("zero2",), ("zero3",)]
    sizes = [model.config.batch.tokens_per_micro_batch, *smaller_batches(model.config)]
    offloads = OFFLOADED[:1] if layout.ranks == 1 else OFFLOADED
    plain = product((False, True), [name for (name,) in launches], sizes)
    for checkpointing, launch, size in [*plain, *product((True,), offloads, sizes)]:
        keys: dict[str, object] = {
            "model.gradient_checkpointing": checkpointing,
            "batch.tokens_per_micro_batch": size,
        }
        if _fits(model, layout, machine, launch, keys):
            is_same = layout_of(read_files(launch), layout.ranks, layout.item) == layout
            return "" if is_same and with_changes(model.config, keys) == model.config else _words(launch, keys)
    return None


def _changes(config: Config, layout: Layout) -> Iterator[Change]:
    """From changes that cost nothing to those that change what is learned."""
    spare: list[dict[str, object]] = [{}] if config.model.gradient_checkpointing else [{}, CHECKPOINTING]
    sizes: list[dict[str, object]] = [{}]
    sizes += [{"batch.tokens_per_micro_batch": n} for n in smaller_batches(config)]
    levels = {"single": 0, "ddp": 0, "zero-1": 1, "zero-2": 2}
    launches = ["", *(SHARDED[levels.get(layout.kind, 3) :] if layout.ranks > 1 else ())]
    for launch, extra, size in product(launches, spare, sizes):
        if launch or extra or size:
            yield launch, {**extra, **size}
    small = {**spare[-1], **sizes[-1]}
    if config.optim.name == "adamw" and layout.kind != "fsdp":
        yield from ((launch, {"optim.name": "adamw_8bit", **small}) for launch in launches)
    yield from ((launch, small) for launch in (OFFLOADED if layout.ranks > 1 else OFFLOADED[:1]))
    if config.tuning.spec.trains_base:
        yield "", {"tuning.kind": "lora", **small}
    if config.model.family is None and layout.kind in ("single", "ddp"):
        yield "", {"tuning.kind": "lora", "tuning.quantization": "nf4", **small}


def _fits(model: Model, layout: Layout, machine: Machine, launch: str, keys: dict[str, object]) -> bool:
    """Whether it is known to fit, and the programs accept it."""
    changed, other = with_changes(model.config, keys), layout
    if launch:
        files = read_files(launch)
        other = layout_of(files, layout.ranks, layout.item)
        if any(conflicts(files, other, changed)):
            return False
    reread = any(key.partition(".")[0] in ("tuning", "optim") for key in keys)
    known = read_model(changed) if reread else dataclasses.replace(model, config=changed)
    return least(known, other) <= machine.memory and plan(known, other, machine).fits(machine) is True


def _words(launch: str, keys: dict[str, object]) -> str:
    words = [f"--accelerate {launch}"] if launch else []
    return " ".join([*words, *(f"--{key} {str(value).lower()}" for key, value in keys.items())])
