"""Keys and values of the rows that are being generated: places in a buffer that rows enter, grow in and leave.

All rows end at the same slot; a shorter row begins later. A new token is one slot further for all. When the buffer is
full the rows are moved back to its beginning. In between, growing copies nothing, and leaving copies one row.

Shape suffixes: b rows, h heads, k keys, d size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from zerotune.inference.network import KeyValues

SPARE_SHARE = 4  # a quarter more slots than the longest row needs, so that rows are rarely moved back


class Slots:
    """Room for `places` rows of at most `longest` tokens each.

    lengths: how many tokens each live row has.
    """

    def __init__(self, places: int, longest: int) -> None:
        self.places, self._size = places, slots_of(longest)
        self.lengths: list[int] = []
        self._longest = longest
        self._end = longest  # the slot after the last token of every row
        self._layers: list[_Layer] = []

    @property
    def free(self) -> int:
        """Places without a row."""
        return self.places - len(self.lengths)

    def enter(self, cached: KeyValues, row: int, at_k: Tensor) -> None:
        """A new row, the last one from now on: the keys `at_k` of row `row` of `cached`, in order."""
        if not self._layers:
            self._layers = [_Layer(keys, values, self.places, self._size) for keys, values in cached]
        place = len(self.lengths)
        self.lengths.append(len(at_k))
        for layer, (keys_bhkd, values_bhkd) in zip(self._layers, cached, strict=True):
            layer.write(place, self._end - len(at_k), keys_bhkd[row][:, at_k], values_bhkd[row][:, at_k])

    def leave(self, place: int) -> None:
        """The last row takes the place of this one, which is gone."""
        last = len(self.lengths) - 1
        for layer in self._layers if place < last else []:
            layer.copy(last, place)
        self.lengths[place] = self.lengths[last]
        del self.lengths[last]

    def step(self) -> tuple[Any, Tensor, Tensor]:
        """Make room for one more token of each row.

        Returns:
            What the model takes for a cache; whether each row sees each key (b, 1, k), the new token's own included;
            and how far back each key lies (1, k).
        """
        start = self._end - max(self.lengths)
        if self._end == self._size:
            for layer in self._layers:
                layer.move_back(self._size - self._longest, start)
            start, self._end = start - (self._size - self._longest), self._longest
        distance_k = self._end - torch.arange(start, self._end + 1)
        sees_bk = distance_k[None] <= torch.tensor(self.lengths)[:, None]
        cache = DynamicCache()
        for layer in self._layers:
            layer.expect(len(self.lengths), start, self._end)
            cache.layers.append(layer)
        self._end += 1
        self.lengths = [length + 1 for length in self.lengths]
        return cache, sees_bk[:, None], distance_k[None]


def slots_of(longest: int) -> int:
    """Slots of a place for rows of at most `longest` tokens."""
    return longest + longest // SPARE_SHARE + 1


class _Layer(DynamicLayer):
    """One layer's buffers behind the interface of transformers' caches."""

    def __init__(self, keys_bhkd: Tensor, values_bhkd: Tensor, places: int, size: int) -> None:
        super().__init__()
        self.lazy_initialization(keys_bhkd, values_bhkd)
        self._buffers = [
            like.new_zeros(places, like.shape[1], size, like.shape[3]) for like in (keys_bhkd, values_bhkd)
        ]
        self._live, self._start, self._end = 0, 0, 0

    def write(self, place: int, start: int, keys_hkd: Tensor, values_hkd: Tensor) -> None:
        for buffer, new_hkd in zip(self._buffers, (keys_hkd, values_hkd), strict=True):
            buffer[place, :, start : start + new_hkd.shape[1]] = new_hkd

    def copy(self, source: int, target: int) -> None:
        for buffer in self._buffers:
            buffer[target] = buffer[source]

    def move_back(self, by: int, start: int) -> None:
        """All from `start` on lies `by` slots earlier."""
        for buffer in self._buffers:
            buffer[:, :, start - by : buffer.shape[2] - by] = buffer[:, :, start:].clone()

    def expect(self, live: int, start: int, end: int) -> None:
        """The next update belongs to the first `live` rows at slot `end`; they see from `start` on."""
        self._live, self._start, self._end = live, start, end

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._buffers
        keys[: self._live, :, self._end : self._end + 1] = key_states
        values[: self._live, :, self._end : self._end + 1] = value_states
        seen = (slice(0, self._live), slice(None), slice(self._start, self._end + 1))
        return keys[seen], values[seen]

    def get_seq_length(self) -> int:
        return self._end - self._start
