"""The KV cache of running rows: a preallocated buffer to which rows are added and from which they are removed.

All rows end at the same slot; a shorter row starts later. Each step appends one slot to all rows. When the buffer is
full, the rows are moved back to its start. Between moves, a step copies nothing and removing a row copies one row.

Shape suffixes: b rows, h heads, k keys, d size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from zerotune.inference.causal_lm import KeyValues

SPARE_SHARE = 4  # a quarter more slots than the longest row needs, so that rows are rarely moved


class KVCache:
    """A cache for at most `capacity` rows of at most `longest` tokens each.

    lengths: number of tokens of each row.
    """

    def __init__(self, capacity: int, longest: int) -> None:
        self.capacity, self._size = capacity, buffer_length(longest)
        self.lengths: list[int] = []
        self._longest = longest
        self._end = longest  # the slot after the last token of every row
        self._layers: list[_Layer] = []

    @property
    def free(self) -> int:
        """Number of rows that can be added."""
        return self.capacity - len(self.lengths)

    def add_row(self, cached: KeyValues, source: int, index_k: Tensor) -> None:
        """Append a row: the keys and values `index_k` of row `source` of `cached`, in order."""
        if not self._layers:
            self._layers = [_Layer(keys, values, self.capacity, self._size) for keys, values in cached]
        row = len(self.lengths)
        self.lengths.append(len(index_k))
        for layer, (keys_bhkd, values_bhkd) in zip(self._layers, cached, strict=True):
            layer.write(row, self._end - len(index_k), keys_bhkd[source][:, index_k], values_bhkd[source][:, index_k])

    def last_keys(self, row: int) -> Tensor:
        """The keys (k, size) of a row in the last layer, which has one head."""
        return self._layers[-1].read(row, self._end - self.lengths[row], self._end)

    def remove_row(self, row: int) -> None:
        """Remove a row; the last row moves to its index."""
        last = len(self.lengths) - 1
        for layer in self._layers if row < last else []:
            layer.copy(last, row)
        self.lengths[row] = self.lengths[last]
        del self.lengths[last]

    def step(self) -> tuple[Any, Tensor, Tensor]:
        """Append one slot to each row.

        Returns:
            The cache to pass to the model; whether each row sees each key (b, 1, k), including the new one; and the
            distance of each key from the new token (1, k).
        """
        start = self._end - max(self.lengths)
        if self._end == self._size:
            for layer in self._layers:
                layer.move_back(self._size - self._longest, start)
            start, self._end = start - (self._size - self._longest), self._longest
        distance_k = self._end - torch.arange(start, self._end + 1)
        visible_bk = distance_k[None] <= torch.tensor(self.lengths)[:, None]
        cache = DynamicCache()
        for layer in self._layers:
            layer.expect(len(self.lengths), start, self._end)
            cache.layers.append(layer)
        self._end += 1
        self.lengths = [length + 1 for length in self.lengths]
        return cache, visible_bk[:, None], distance_k[None]


def buffer_length(longest: int) -> int:
    """Slots of the buffer for rows of at most `longest` tokens."""
    return longest + longest // SPARE_SHARE + 1


class _Layer(DynamicLayer):
    """The buffers of one model layer, with the interface of transformers' caches."""

    def __init__(self, keys_bhkd: Tensor, values_bhkd: Tensor, capacity: int, size: int) -> None:
        super().__init__()
        self.lazy_initialization(keys_bhkd, values_bhkd)
        self._buffers = [
            like.new_zeros(capacity, like.shape[1], size, like.shape[3]) for like in (keys_bhkd, values_bhkd)
        ]
        self._rows, self._start, self._end = 0, 0, 0

    def write(self, row: int, start: int, keys_hkd: Tensor, values_hkd: Tensor) -> None:
        for buffer, new_hkd in zip(self._buffers, (keys_hkd, values_hkd), strict=True):
            buffer[row, :, start : start + new_hkd.shape[1]] = new_hkd

    def read(self, row: int, start: int, end: int) -> Tensor:
        return self._buffers[0][row, 0, start:end]

    def copy(self, source: int, target: int) -> None:
        for buffer in self._buffers:
            buffer[target] = buffer[source]

    def move_back(self, by: int, start: int) -> None:
        """Move everything from slot `start` on by `by` slots towards the beginning."""
        for buffer in self._buffers:
            buffer[:, :, start - by : buffer.shape[2] - by] = buffer[:, :, start:].clone()

    def expect(self, rows: int, start: int, end: int) -> None:
        """Prepare the next update: it writes slot `end` of the first `rows` rows and returns slots from `start` on."""
        self._rows, self._start, self._end = rows, start, end

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._buffers
        keys[: self._rows, :, self._end : self._end + 1] = key_states
        values[: self._rows, :, self._end : self._end + 1] = value_states
        visible = (slice(0, self._rows), slice(None), slice(self._start, self._end + 1))
        return keys[visible], values[visible]

    def get_seq_length(self) -> int:
        return self._end - self._start
