"""The states of a model on one rank in bytes: weights, gradients, optimizer. docs/planning.md has the formulae.

`at_update` is what a rank holds between the backward pass and the update; the tests compare it with real runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from train.plan.layout import Layout
from train.plan.weights import Weight

FLOAT = 4
StateBytes = Callable[[Sequence[Sequence[int]]], int]  # of the optimizer, for the shapes of parameters


@dataclass(frozen=True)
class States:
    """Bytes by part. on_host: those that are in the memory of the machine instead.

    master: float32 copies of 16-bit weights. buckets: of gradients on their way to other ranks. gathered: at most, of
    weights from other ranks. update: beside all others while the optimizer runs, when there are no activations.
    """

    weights: int = 0
    master: int = 0
    optimizer: int = 0
    gradients: int = 0
    buckets: int = 0
    gathered: int = 0
    update: int = 0
    on_host: int = 0

    @property
    def in_backward(self) -> int:
        """The sum in the backward pass, without activations."""
        return self.weights + self.master + self.optimizer + self.gradients + self.buckets + self.gathered

    @property
    def in_update(self) -> int:
        """The sum in the update."""
        return self.weights + self.master + self.optimizer + self.gradients + self.update


def at_update(weights: Sequence[Weight], layout: Layout, state_bytes: StateBytes, rank: int = 0) -> States:
    """What a rank holds between backward pass and update, on the GPU or (offload) on the host."""
    return {"single": _whole, "ddp": _whole, "fsdp": _fsdp, "zero-1": _flat, "zero-2": _flat, "zero-3": _shards}[
        layout.kind
    ](weights, layout, state_bytes, rank)


def at_peak(weights: Sequence[Weight], layout: Layout, state_bytes: StateBytes) -> States:
    """What the fullest rank holds in the backward pass and the update, with buckets and gathered weights."""
    states = at_update(weights, layout, state_bytes, 0)
    trained = [w for w in weights if w.is_trained]
    if layout.stage in (1, 2):
        gradients = layout.item * max(_touched(trained, layout))
        if layout.stage == 1:  # they are released only after the last micro-batch
            gradients = layout.item * sum(w.size for w in trained)
        buckets = layout.item * layout.reduce_bucket * (1 + layout.overlaps) * layout.contiguous
        states = replace(states, gradients=0 if layout.offloads_optimizer else gradients, buckets=buckets)
        largest = max(_partitions(trained, layout))
        update = 0 if layout.offloads_optimizer else (FLOAT + layout.item) * largest
        return replace(states, update=update)
    if layout.stage == 3:
        # The limit is for what is fetched ahead; a module that runs needs its own weights in any case.
        gathered = layout.item * min(_size(weights), layout.live + max(_modules(weights).values()))
        largest = max(sum(group) for group in _sub_groups(trained, layout))
        return replace(states, gathered=gathered, update=0 if layout.offloads_optimizer else FLOAT * largest)
    if layout.kind == "fsdp":
        units = [list(members) for _, members in groupby(weights, key=lambda w: w.unit)]
        root = sum(w.size for w in weights if not w.unit)
        layer = max((unit for unit in units if unit[0].unit), key=_size, default=units[0])
        sent = sum(w.size for w in layer if w.is_trained)
        # The root's weights, two layers (one is fetched ahead), a layer's gradients and their float32 copy.
        gathered = layout.item * (root + 2 * _size(layer)) if layout.ranks > 1 else 0
        # Before the last micro-batch nothing is reduced: each rank keeps whole gradients in float32.
        kept = FLOAT * _size(trained) if layout.micro_batches > 1 else 0
        buckets = (layout.item + FLOAT) * max(sent, 1)
        return replace(states, gathered=gathered, buckets=buckets, gradients=states.gradients + kept)
    return states


def _size(unit: Sequence[Weight]) -> int:
    return sum(w.size for w in unit)


def _modules(weights: Sequence[Weight]) -> Counter[str]:
    """Elements of each module's own parameters."""
    sizes: Counter[str] = Counter()
    for weight in weights:
        sizes[weight.name.rpartition(".")[0]] += weight.size
    return sizes


def _whole(weights: Sequence[Weight], layout: Layout, state_bytes: StateBytes, rank: int) -> States:
    trained = [w for w in weights if w.is_trained]
    gradients = sum(w.bytes for w in trained)
    return States(
        weights=sum(w.bytes for w in weights),
        optimizer=state_bytes([w.shape for w in trained]),
        gradients=gradients,
        buckets=gradients if layout.kind == "ddp" else 0,  # Accelerate does not make gradients views of DDP's buckets
    )


def _groups(trained: Sequence[Weight]) -> list[list[Weight]]:
    numbers = sorted({w.group for w in trained if w.group is not None})
    return [[w for w in trained if w.group == number] for number in numbers]


def _partitions(trained: Sequence[Weight], layout: Layout) -> list[int]:
    """Elements of one rank's part of each group: ZeRO-1 and 2 fill a group up to a multiple of 2 x ranks."""
    aligned = 2 * layout.ranks
    return [-(-_size(group) // aligned) * 2 for group in _groups(trained)]


def _touched(trained: Sequence[Weight], layout: Layout) -> list[int]:
    """For each rank, elements of the parameters that its part holds, or begins or ends in: ZeRO-1 and 2 keep their
    gradients whole. Zeros fill up the last part."""
    touched = [0] * layout.ranks
    for group, part in zip(_groups(trained), _partitions(trained, layout), strict=True):
        start = 0
        for rank in range(_size(group) // part, layout.ranks):
            touched[rank] += min(part, (rank + 1) * part - _size(group))
        for weight in group:
            for rank in range(start // part, (start + weight.size - 1) // part + 1):
                touched[rank] += weight.size
            start += weight.size
    return touched


def _flat(weights: Sequence[Weight], layout: Layout, state_bytes: StateBytes, rank: int) -> States:
    """ZeRO-1 and ZeRO-2."""
    trained = [w for w in weights if w.is_trained]
    parts = _partitions(trained, layout)
    frozen = sum(w.bytes_in(layout.item) for w in weights if not w.is_trained)
    held = frozen + layout.item * layout.ranks * sum(parts)
    master, optimizer = FLOAT * sum(parts), state_bytes([(part,) for part in parts])
    if layout.offloads_optimizer:  # also gradients in float32, and a part in 16 bits on its way back
        largest = layout.item * max(w.size for w in trained)
        host = 2 * master + optimizer + layout.item * sum(parts) + largest
        return States(weights=held, buckets=largest, on_host=host)
    gradients = layout.item * _touched(trained, layout)[rank]
    return States(weights=held, master=master, optimizer=optimizer, gradients=gradients)


def _shard(size: int, ranks: int) -> int:
    return -(-size // ranks)


def _sub_groups(trained: Sequence[Weight], layout: Layout) -> list[list[int]]:
    """ZeRO-3 runs the optimizer on parts of a group: the shards of some parameters."""
    found: list[list[int]] = []
    for group in _groups(trained):
        current: list[int] = []
        for weight in group:
            current.append(_shard(weight.size, layout.ranks))
            if sum(current) >= layout.sub_group:
                found.append(current)
                current = []
        found += [current] if current else []
    return found


def _shards(weights: Sequence[Weight], layout: Layout, state_bytes: StateBytes, rank: int) -> States:
    """ZeRO-3."""
    trained = [w for w in weights if w.is_trained]
    is_adapted = len(trained) < len(weights)

    def item(weight: Weight) -> int:
        """Loading gives the model the type of products; what a tuning adds to it keeps its own."""
        return weight.bytes // weight.size if is_adapted and weight.is_trained else layout.item

    persistent = bytes_kept = 0
    for weight in weights:
        if weight.size <= layout.persistent_size and persistent + weight.size <= layout.persistent_total:
            persistent += weight.size
            bytes_kept += _shard(weight.size, layout.ranks) * layout.ranks * item(weight)  # as it was gathered
    shards = sum(_shard(w.size, layout.ranks) * item(w) for w in weights)
    sub_groups = [sum(group) for group in _sub_groups(trained, layout)]
    master, optimizer = FLOAT * sum(sub_groups), state_bytes([(size,) for size in sub_groups])
    gradients = layout.item * sum(sub_groups)
    buckets = layout.item * layout.reduce_bucket * layout.contiguous
    host = (shards if layout.offloads_weights else 0) + (
        master + optimizer + gradients if layout.offloads_optimizer else 0
    )
    if layout.offloads_optimizer:
        master = optimizer = gradients = 0
    held = bytes_kept + (0 if layout.offloads_weights else shards)
    return States(held, master, optimizer, gradients, buckets, on_host=host)


def _fsdp(weights: Sequence[Weight], layout: Layout, state_bytes: StateBytes, rank: int) -> States:
    """FSDP2 cuts each parameter by rows; every shard has the size of the largest."""

    def rows(weight: Weight) -> int:
        """Of this rank."""
        most = _shard(weight.shape[0], layout.ranks)
        return max(0, min(most, weight.shape[0] - rank * most))

    trained = [w for w in weights if w.is_trained]
    padded = {w.name: _shard(w.shape[0], layout.ranks) * w.size // w.shape[0] for w in weights}
    return States(
        weights=sum(padded[w.name] * w.bytes // w.size for w in weights),
        optimizer=state_bytes([(rows(w), *w.shape[1:]) for w in trained]),
        gradients=FLOAT * sum(padded[w.name] for w in trained),
    )
