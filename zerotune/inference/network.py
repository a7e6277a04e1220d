"""A transformers causal language model as a function: tokens to hidden states, hidden states to log-probabilities.

Shape suffixes: b rows, t positions, k keys, p places with logits, n wanted tokens, v vocabulary, d width of the hidden
states; keys and values are b, heads, k, head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from zerotune.inference.prefixes import Pack, Tokens, chain, next_pack, sorted_lines
from zerotune.models import cpu_attention

KeyValues = list[tuple[Tensor, Tensor]]  # of each layer

LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**26}  # numbers of one block of logits: on a CPU what stays near its cores
LEAST_BLOCK = 16  # rows of a block; fewer leave a matrix product idle
PROBE = ((3, 1, 4, 1, 5, 2), (3, 1, 4, 1, 5, 3, 1), (3, 1, 4, 2, 5))  # lines that share beginnings
PROBE_PREFIX = 2
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative; a wrong mask or place is far from that
CLOSE_IN_HALF = 0.1
KINDS = {"full_attention", "sliding_attention"}
MASKED = ("sdpa", "eager", cpu_attention.NAME)  # implementations of attention that take a mask for each pair of tokens
CHANGING_ROTATIONS = (
    "dynamic",
    "longrope",
)  # turned by the longest row of a batch: cached keys would not fit later ones


class Network:
    """What scoring and generation need of a model.

    shares_prefixes: whether its cache is keys and values that can be cut and joined at will, and it takes masks and
    places as given; found out by trying.
    tokens: how many have gone through the model so far, padding not counted.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config.get_text_config()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self._head = model.get_output_embeddings()
        self._has_plain_head = self._head_is_plain()
        self.tokens = 0
        self.shares_prefixes = self._prefixes_can_be_shared()
        self.tokens = 0  # the trial was not asked for

    def rows(self, rows: Sequence[Tokens], keep: bool = False) -> tuple[Tensor, KeyValues]:
        """States (b, t, d) of rows that are padded on the right, where causal attention never looks.

        States are what `log_probs` takes. keep: with keys and values, those of the padding too.
        """
        ids_bt = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for row_t, ids in zip(ids_bt, rows, strict=True):
            row_t[: len(ids)] = ids
        cache = DynamicCache() if keep else None
        states_btd = self._states(torch.from_numpy(ids_bt), past_key_values=cache, use_cache=keep)
        self.tokens += sum(map(len, rows))
        return states_btd, key_values(cache) if cache else []

    def pack(self, pack: Pack, prefix: KeyValues) -> tuple[Tensor, KeyValues]:
        """States (t, d) of a pack behind `prefix` (of pack.shared keys; empty for none), and all keys and values."""
        place_t = torch.from_numpy(pack.depths)
        place_k = torch.cat([torch.arange(pack.shared), place_t])
        at_t = torch.arange(len(place_t))
        sees_tt = (at_t[None] <= at_t[:, None]) & (at_t[:, None] < torch.from_numpy(pack.ends)[None])
        sees_tk = torch.cat([torch.ones(len(at_t), pack.shared, dtype=torch.bool), sees_tt], 1)
        cache = _cache(prefix)
        ids_t = torch.from_numpy(pack.ids)
        states_btd = self.masked(ids_t[None], place_t[None], sees_tk[None], place_t[:, None] - place_k[None], cache)
        return states_btd[0], key_values(cache)

    def masked(self, ids_bt: Tensor, place_bt: Tensor, sees_btk: Tensor, distance_tk: Tensor, cache: Any) -> Tensor:
        """States (b, t, d) of tokens whose places and visible keys are given; `cache` grows by them.

        distance_tk: how far before a token a key lies, for layers with a sliding window.
        """
        masks = self._masks(sees_btk.to(self.device), distance_tk.to(self.device))
        place_bt = place_bt.to(self.device)
        self.tokens += ids_bt.numel()
        return self._states(ids_bt, position_ids=place_bt, attention_mask=masks, past_key_values=cache, use_cache=True)

    def logits(self, states_pd: Tensor) -> Tensor:
        """Logits (p, v) in fp32."""
        if not self._has_plain_head:
            return states_pd.float()
        logits_pv: Tensor = self._bent(self._head(states_pd))
        return logits_pv.float()

    def log_probs(self, states_pd: Tensor, place_n: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
        """log p of each target at its place in `states_pd`, in fp32, and whether it is the most probable token there.

        Only a block of logits exists at a time. Not by log_softmax: over 49k words that is 5e-6 too low or high for
        every token alike.
        """
        size = self.block
        log_prob_n = torch.empty(len(targets_n), device=self.device)
        greedy_n = torch.empty(len(targets_n), dtype=torch.bool, device=self.device)
        for start in range(0, len(states_pd), size):
            logits_pv = self.logits(states_pd[start : start + size])
            best_p, likeliest_p = logits_pv.max(-1)
            (n,) = torch.nonzero((place_n >= start) & (place_n < start + size), as_tuple=True)
            p, target_n = place_n[n] - start, targets_n[n]
            wanted_n = logits_pv[p, target_n]
            # In place: the block has done its duty, and a second one would double the memory.
            log_sum_p = best_p + logits_pv.sub_(best_p[:, None]).exp_().sum(-1).log()
            log_prob_n[n], greedy_n[n] = wanted_n - log_sum_p[p], likeliest_p[p] == target_n
        return log_prob_n, greedy_n

    @property
    def block(self) -> int:
        """Of so many places the logits may exist at once."""
        return max(LOGITS_AT_ONCE.get(self.device.type, 2**23) // int(self.config.vocab_size), LEAST_BLOCK)

    def _states(self, ids_bt: Tensor, **keywords: Any) -> Tensor:
        """Last hidden states; logits where these are not just hidden states times the output embeddings."""
        ids_bt = ids_bt.to(self.device)
        if self._has_plain_head:
            states_btd: Tensor = self.model.base_model(input_ids=ids_bt, **keywords).last_hidden_state
            return states_btd
        logits_btv: Tensor = self.model(input_ids=ids_bt, **keywords).logits
        return logits_btv

    def _masks(self, sees_btk: Tensor, distance_tk: Tensor) -> Any:
        """As the model wants it: one mask, or one for each kind of its layers."""
        kinds, window = set(getattr(self.config, "layer_types", None) or ()), self._window
        if window is None:
            return self._additive(sees_btk)
        near_btk = sees_btk & (distance_tk < window)
        if "full_attention" not in kinds:
            return self._additive(near_btk)
        return {"full_attention": self._additive(sees_btk), "sliding_attention": self._additive(near_btk)}

    def _additive(self, sees_btk: Tensor) -> Tensor:
        zeros_btk = torch.zeros(sees_btk.shape, dtype=self.dtype, device=self.device)
        return zeros_btk.masked_fill_(~sees_btk, torch.finfo(self.dtype).min)[:, None]

    @property
    def _window(self) -> int | None:
        """How many tokens a sliding layer sees; None where there is no such layer."""
        kinds = set(getattr(self.config, "layer_types", None) or ())
        return getattr(self.config, "sliding_window", None) if not kinds or "sliding_attention" in kinds else None

    def _bent(self, logits: Any) -> Any:
        """What some families do to logits after the output embeddings, by their configurations' names for it."""
        cap = getattr(self.config, "final_logit_softcapping", None)
        if cap:
            return torch.tanh(logits / cap) * cap
        factor = getattr(self.config, "logit_scale", None)
        divisor = getattr(self.config, "logits_scaling", None)
        return logits * factor if factor else logits / divisor if divisor else logits

    @torch.inference_mode()
    def _head_is_plain(self) -> bool:
        """Whether `logits` makes of the last hidden states exactly what the model does. Tried, not assumed."""
        if self._head is None or self.model.base_model is self.model:
            return False
        ids_bt = torch.tensor(PROBE[:1], device=self.device)
        whole_btv = self.model(input_ids=ids_bt, use_cache=False).logits
        hidden_btd = self.model.base_model(input_ids=ids_bt, use_cache=False).last_hidden_state
        return torch.equal(
            self._bent(self._head(hidden_btd)), whole_btv
        )  # a cap hardly shows in small logits: no tolerance

    @torch.inference_mode()
    def _prefixes_can_be_shared(self) -> bool:
        if not self._cache_is_plain():
            return False
        lines = sorted_lines([(ids, PROBE_PREFIX) for ids in PROBE])
        pack = next_pack(lines, PROBE_PREFIX, limit=64)
        try:
            prefix = self.pack(chain(lines[0].ids[:PROBE_PREFIX], 0), [])[1]
            states_td, _ = self.pack(pack, prefix)
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, NotImplementedError):
            return False  # there are many ways in which a family can fail to take a mask; all of them mean no
        whole_btd, _ = self.rows([line.ids for line in lines])
        tolerance = CLOSE.get(self.dtype, CLOSE_IN_HALF)
        return all(
            bool((states_td[path] - own_td).norm() <= tolerance * own_td.norm())
            for path, line, row_td in zip(pack.paths, lines, whole_btd, strict=True)
            for own_td in [row_td[pack.shared : len(line.ids)]]
        )

    def _cache_is_plain(self) -> bool:
        config = self.config
        rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
        layers = DynamicCache(config=config).layers
        return (
            not getattr(self.model, "_is_stateful", False)
            and getattr(config, "_attn_implementation", None) in MASKED
            and set(getattr(config, "layer_types", None) or ()) <= KINDS
            and "local" not in (getattr(config, "attention_layers", None) or ())  # GPT-Neo counts slots, not places
            and rotation not in CHANGING_ROTATIONS
            and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        )


class Prefix:
    """One cached beginning. It is cut, and run on from there, when another one is asked for."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.forget()

    def forget(self) -> None:
        """Start anew."""
        self._ids: Tokens = np.zeros(0, dtype=np.int64)
        self._key_values: KeyValues = []

    def common(self, ids: Tokens) -> int:
        """How many of the first `ids` are cached."""
        size = min(len(ids), len(self._ids))
        differs = ids[:size] != self._ids[:size]
        return int(differs.argmax()) if differs.any() else size

    def of(self, ids: Tokens, limit: int) -> KeyValues:
        """Keys and values of `ids`, which are run in stretches of at most `limit` as far as they are not cached."""
        done = self.common(ids)
        if done < len(ids):
            kept = _first(self._key_values, done)
            self.forget()  # before the new one is there, the old one need not be
            while done < len(ids):
                until = min(done + limit, len(ids))
                _, kept = self._network.pack(chain(ids[:until], done), kept)
                done = until
            self._ids, self._key_values = ids, kept
        return _first(self._key_values, len(ids))


def key_values(cache: Any) -> KeyValues:
    """Those that a transformers cache holds."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def _first(cached: KeyValues, size: int) -> KeyValues:
    return [(keys[:, :, :size], values[:, :, :size]) for keys, values in cached] if size else []


def _cache(cached: KeyValues) -> DynamicCache:
    """A cache that begins with these, which it does not change."""
    cache = DynamicCache()
    for keys, values in cached:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
