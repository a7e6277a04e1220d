"""From tokenised rows to micro-batches: order, steps, packs.

The rows of an optimizer step depend only on seed, epoch, row lengths and tokens per step. How a step is divided into
micro-batches and ranks is decided afterwards and changes no result: a run resumes on another number of ranks, or with
smaller micro-batches, with the same rows in the same order.

Shape suffixes: n rows of a data set, b rows of a micro-batch, t positions.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from train.data.document import Document, nothing
from train.protocols import Batch

Indices = NDArray[np.int64]
POOL_STEPS = 64  # padded layout: rows are sorted by length inside a pool of this many steps


class Rows(Protocol):
    """Tokenised rows, such as `train.data.token_dataset.Encoded`."""

    lengths_n: NDArray[np.int32]
    learned_n: NDArray[np.int32]
    sources_n: NDArray[np.int16]

    def __len__(self) -> int: ...
    def documents(self, index: int) -> list[Document]: ...
    def row_id(self, index: int) -> str: ...


@dataclass(frozen=True)
class Shape:
    """How rows become micro-batches."""

    packed: bool
    tokens_per_step: int
    tokens_per_micro_batch: int
    longest_row: int
    shuffle: bool
    pad_token_id: int


def order(
    sources_n: NDArray[np.int16], weights: Sequence[float], seed: int, epoch: int, shuffle: bool = True
) -> Indices:
    """Row indices of one epoch.

    A source of weight w gives w times its rows; a fraction of a pass has other rows in each epoch.
    """
    chosen = []
    for source, weight in enumerate(weights):
        rows = np.flatnonzero(sources_n == source)
        whole, part = divmod(weight, 1.0)
        chosen += [rows] * int(whole)
        count = round(part * len(rows))
        if count:
            cycle = np.random.default_rng([seed, source, 1]).permutation(rows)
            chosen.append(cycle[(epoch * count + np.arange(count)) % len(rows)])
    everything = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    return np.random.default_rng([seed, epoch, 0]).permutation(everything) if shuffle else everything


def epoch_steps(rows: Rows, weights: Sequence[float], shape: Shape, seed: int, epoch: int) -> list[Indices]:
    """The rows of each optimizer step of an epoch: nearly equal token counts, every row exactly once per pass."""
    order_n = order(rows.sources_n, weights, seed, epoch, shape.shuffle)
    if shape.packed or not shape.shuffle:  # then only micro-batches have similar lengths
        return _cut(order_n, rows.lengths_n, _count(order_n, rows.lengths_n, shape.tokens_per_step))
    steps: list[Indices] = []
    random = np.random.default_rng([seed, epoch, 2])
    for pool_n in _cut(order_n, rows.lengths_n, _count(order_n, rows.lengths_n, shape.tokens_per_step * POOL_STEPS)):
        steps += _by_length(pool_n, rows.lengths_n, _count(pool_n, rows.lengths_n, shape.tokens_per_step), random)
    return steps


def stream_steps(lengths_n: NDArray[np.int32], before: int, shape: Shape, seed: int) -> list[Indices]:
    """The rows of each full step in a part of a stream: step i ends with the row that brings the stream to
    (i + 1) * tokens_per_step tokens. The remaining rows begin the next part.

    lengths_n: of the rows after the last full step, in order; none is longer than a step. before: tokens of the stream
    before these rows.
    """
    if not len(lengths_n):
        return []
    budget, ends_n = shape.tokens_per_step, before + np.cumsum(lengths_n, dtype=np.int64)
    first, beyond = before // budget, int(ends_n[-1]) // budget
    ends = np.searchsorted(ends_n, budget * np.arange(first + 1, beyond + 1)) + 1
    rows_n = np.arange(len(lengths_n))
    if shape.packed or not shape.shuffle:
        return np.split(rows_n, ends)[:-1]
    steps: list[Indices] = []
    start = 0
    for number in range(0, len(ends), POOL_STEPS):
        pool_ends = ends[number : number + POOL_STEPS]
        random = np.random.default_rng([seed, first + number, 3])
        steps += _by_length(rows_n[start : pool_ends[-1]], lengths_n, len(pool_ends), random)
        start = int(pool_ends[-1])
    return steps


def _count(order_n: Indices, lengths_n: NDArray[np.int32], budget: int) -> int:
    """The number of parts of about `budget` tokens in these rows."""
    return max(1, round(int(lengths_n[order_n].sum(dtype=np.int64)) / budget))


def _cut(order_n: Indices, lengths_n: NDArray[np.int32], parts: int) -> list[Indices]:
    """Consecutive parts with nearly equal token counts."""
    if len(order_n) == 0:
        return []
    ends_n = np.cumsum(lengths_n[order_n], dtype=np.int64)
    limits = ends_n[-1] * np.arange(1, parts) / parts
    return [part for part in np.split(order_n, np.searchsorted(ends_n, limits) + 1) if len(part)]


def _by_length(pool_n: Indices, lengths_n: NDArray[np.int32], parts: int, random: np.random.Generator) -> list[Indices]:
    """The rows of a pool as steps of rows with similar lengths, in random order."""
    cut = _cut(pool_n[np.argsort(lengths_n[pool_n], kind="stable")], lengths_n, parts)
    return [cut[i] for i in random.permutation(len(cut))]


def micro_batches(step_n: Indices, lengths_n: NDArray[np.int32], shape: Shape, ranks: int) -> list[list[int]]:
    """Groups of rows within the token budget; their number is a multiple of `ranks`.

    Rank r computes groups r, r + ranks, ...; a group may be empty.
    """
    groups = _packs if shape.packed else _padded_groups
    return groups([int(i) for i in step_n], lengths_n, shape.tokens_per_micro_batch, ranks)


def _packs(step: list[int], lengths_n: NDArray[np.int32], budget: int, ranks: int) -> list[list[int]]:
    """Put the longest row first into the emptiest pack, so that all ranks have nearly equal work."""
    longest_first = sorted(step, key=lambda i: (-int(lengths_n[i]), i))
    total = sum(int(lengths_n[i]) for i in step)
    count = -(-max(-(-total // budget), 1) // ranks) * ranks
    while True:
        packs: list[list[int]] = [[] for _ in range(count)]
        filled = [(0, k) for k in range(count)]
        for row in longest_first:
            tokens, k = heapq.heappop(filled)
            packs[k].append(row)
            heapq.heappush(filled, (tokens + int(lengths_n[row]), k))
        if max(tokens for tokens, _ in filled) <= budget or count >= len(step):
            return packs
        count += ranks


def _padded_groups(step: list[int], lengths_n: NDArray[np.int32], budget: int, ranks: int) -> list[list[int]]:
    """Groups of rows of similar length, within the budget including padding."""
    by_length = sorted(step, key=lambda i: (int(lengths_n[i]), i))
    groups: list[list[int]] = [[]]
    for row in by_length:
        if groups[-1] and (len(groups[-1]) + 1) * int(lengths_n[row]) > budget:
            groups.append([])
        groups[-1].append(row)
    while len(groups) % ranks:
        splittable = [k for k, group in enumerate(groups) if len(group) > 1]
        if not splittable:  # the other ranks get empty groups
            groups.append([])
            continue
        largest = max(splittable, key=lambda k: len(groups[k]) * int(lengths_n[groups[k][-1]]))
        half = len(groups[largest]) // 2
        groups[largest : largest + 1] = [groups[largest][:half], groups[largest][half:]]
    return groups


def collate(rows: Rows, group: Sequence[int], shape: Shape, filler: int) -> Batch:
    """The tensors of one micro-batch. An empty group gives the row `filler` without targets: every rank must compute
    a micro-batch.
    """
    empty = not group
    documents = [document for i in (group or [filler]) for document in rows.documents(i)]
    if empty:
        documents = [document.without_targets() for document in documents]
    inputs, targets_bt = joined(documents, shape)
    return Batch(
        inputs=inputs,
        targets=targets_bt,
        counts={"loss": float(sum(document.learned for document in documents))},
        tokens=0 if empty else sum(len(document.ids_t) for document in documents),
        positions=targets_bt.numel(),
        row_ids=tuple(rows.row_id(i) for i in group),
    )


def joined(documents: Sequence[Document], shape: Shape) -> tuple[dict[str, object], torch.Tensor]:
    """(inputs of the model, targets) of documents, in their order."""
    return _packed(documents) if shape.packed else _padded(documents, shape.pad_token_id)


def _packed(documents: Sequence[Document]) -> tuple[dict[str, object], torch.Tensor]:
    """All documents in one row; positions restart in each, and attention reads the boundaries from cu_seq_lens."""
    lengths = [len(document.ids_t) for document in documents]
    boundaries = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    inputs = {
        "input_ids": _row([document.ids_t for document in documents]),
        "position_ids": _row([np.arange(n, dtype=np.int32) for n in lengths]),
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "use_cache": False,
    }
    if any(document.second for document in documents):
        inputs["token_type_ids"] = _row([_sentence_numbers(document) for document in documents])
    if values := _number_values(documents):
        inputs["values"] = _row(values)
    return inputs, _row([document.targets_t for document in documents])


def _row(parts: Sequence[NDArray[Any]]) -> torch.Tensor:
    joined = np.concatenate(parts)
    return torch.from_numpy(joined if joined.dtype.kind == "f" else joined.astype(np.int64))[None]


def _padded(documents: Sequence[Document], pad: int) -> tuple[dict[str, object], torch.Tensor]:
    """One document per row, padded on the right."""
    width = max(len(document.ids_t) for document in documents)

    def table(parts: Sequence[NDArray[Any]], fill: float) -> torch.Tensor:
        table_bt = np.full((len(parts), width), fill, np.float64 if parts[0].dtype.kind == "f" else np.int64)
        for b, part in enumerate(parts):
            table_bt[b, : len(part)] = part
        return torch.from_numpy(table_bt)

    targets = [document.targets_t for document in documents]
    inputs = {
        "input_ids": table([document.ids_t for document in documents], pad),
        "attention_mask": table([np.ones(len(document.ids_t), np.int32) for document in documents], 0),
        "use_cache": False,
    }
    if any(document.second for document in documents):
        inputs["token_type_ids"] = table([_sentence_numbers(document) for document in documents], 0)
    if values := _number_values(documents):
        inputs["values"] = table(values, 0.0)
    return inputs, table(targets, nothing(targets[0]))


def _number_values(documents: Sequence[Document]) -> list[NDArray[np.float64]]:
    return [document.values_t for document in documents if document.values_t is not None]


def _sentence_numbers(document: Document) -> NDArray[np.int32]:
    """0 for the tokens of the first sentence, 1 for those of the second."""
    is_second_t = np.arange(len(document.ids_t)) >= (document.second or len(document.ids_t))
    return is_second_t.astype(np.int32)


def rank_batches(rows: Rows, step_n: Indices, shape: Shape, rank: int, ranks: int) -> list[Batch]:
    """This rank's micro-batches of one step."""
    groups = micro_batches(step_n, rows.lengths_n, shape, ranks)
    return [collate(rows, group, shape, filler=int(step_n[0])) for group in groups[rank::ranks]]


def padding_share(lengths_n: NDArray[np.int32], steps: Sequence[Indices], shape: Shape, ranks: int) -> float:
    """Share of computed positions that are padding, over `steps`; fillers count as padding."""
    tokens = positions = 0
    for step_n in steps:
        for group in micro_batches(step_n, lengths_n, shape, ranks):
            lengths = [int(lengths_n[i]) for i in group] or [0]
            tokens += sum(lengths)
            positions += (
                sum(lengths) if shape.packed and group else len(lengths) * (max(lengths) or int(lengths_n[step_n[0]]))
            )
    return 1.0 - tokens / positions if positions else 0.0
