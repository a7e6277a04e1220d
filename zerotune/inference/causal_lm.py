"""Wraps a transformers causal language model: tokens to hidden states, hidden states to log-probabilities.

Shape suffixes: b rows, t positions, k keys, p positions with logits, n target tokens, v vocabulary, d width of the
hidden states; keys and values are b, heads, k, head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from zerotune.common.errors import UserError
from zerotune.data.number_tokens import is_number, number_id, rounded, value_of
from zerotune.inference.nonfinite import require_finite
from zerotune.inference.shared_prefixes import Pack, Tokens, chain, common, next_pack, sorted_sequences
from zerotune.models import cpu_attention, middle_states, numeric
from zerotune.models.numeric import Cause

KeyValues = list[tuple[Tensor, Tensor]]  # of each layer

LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**26}  # numbers in one block of logits; on a CPU, what fits into its caches
LEAST_BLOCK = 16  # rows of a block; fewer waste a matrix product
PROBE = ((3, 1, 4, 1, 5, 2), (3, 1, 4, 1, 5, 3, 1), (3, 1, 4, 2, 5))  # sequences with common prefixes
PROBE_PREFIX = 2
CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative; a wrong mask or position is far from that
CLOSE_IN_HALF = 0.1
KINDS = {"full_attention", "sliding_attention"}
MASKED = ("sdpa", "eager", cpu_attention.NAME)  # attention implementations that take a mask for each pair of tokens
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")  # rotation depends on the longest row of a batch: no caching


class Network:
    """A model's forward pass, for scoring and generation.

    has_plain_head: whether logits are a function of each last hidden state alone; determined by a trial run.
    numbers: how it reads numbers as values; None for ordinary models.
    key_states_btd: the states of the pointer's keys in the last forward pass.
    shares_prefixes: whether its KV cache can be sliced and concatenated, and it honours the given masks and positions;
    determined by a trial run.
    tokens: number of tokens processed so far, without padding.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config.get_text_config()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.numbers = numeric.settings_of(model.config)
        self._pointer = model.numeric.pointer if self.numbers else None
        self._head = partial(numeric.scores, model) if self.numbers else model.get_output_embeddings()
        self.has_plain_head = self._head_is_plain()
        self.tokens = 0
        self.shares_prefixes = self._prefixes_can_be_shared()
        self.tokens = 0  # without those of the trial run

    def rows(self, rows: Sequence[Tokens], keep: bool = False) -> tuple[Tensor, KeyValues]:
        """Hidden states (b, t, d) of rows padded on the right, which causal attention ignores.

        keep: also return keys and values, including those of the padding. `log_probs` takes the states.
        """
        ids_bt = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for row_t, ids in zip(ids_bt, rows, strict=True):
            row_t[: len(ids)] = ids
        cache = DynamicCache() if keep else None
        states_btd = self._states(torch.from_numpy(ids_bt), past_key_values=cache, use_cache=keep)
        if cache is not None:
            self._remember(cache, is_new=True)
        self.tokens += sum(map(len, rows))
        return states_btd, key_values(cache) if cache else []

    def pack(self, pack: Pack, prefix: KeyValues) -> tuple[Tensor, KeyValues]:
        """States (t, d) of a pack after `prefix` (pack.shared keys; may be empty), and all keys and values."""
        position_t = torch.from_numpy(pack.depths)
        position_k = torch.cat([torch.arange(pack.shared), position_t])
        at_t = torch.arange(len(position_t))
        visible_tt = (at_t[None] <= at_t[:, None]) & (at_t[:, None] < torch.from_numpy(pack.ends)[None])
        visible_tk = torch.cat([torch.ones(len(at_t), pack.shared, dtype=torch.bool), visible_tt], 1)
        cache = _cache(prefix)
        ids_t = torch.from_numpy(pack.ids)
        states_btd = self.masked(
            ids_t[None], position_t[None], visible_tk[None], position_t[:, None] - position_k[None], cache
        )
        return states_btd[0], key_values(cache)

    def masked(
        self, ids_bt: Tensor, position_bt: Tensor, visible_btk: Tensor, distance_tk: Tensor, cache: Any
    ) -> Tensor:
        """States (b, t, d) of tokens with the given positions and visible keys; appends them to `cache`.

        distance_tk: distance of each key before its token, for layers with a sliding window.
        """
        masks = self._masks(visible_btk.to(self.device), distance_tk.to(self.device))
        position_bt = position_bt.to(self.device)
        self.tokens += ids_bt.numel()
        is_new = not cache.layers
        states_btd = self._states(
            ids_bt, position_ids=position_bt, attention_mask=masks, past_key_values=cache, use_cache=True
        )
        self._remember(cache, is_new)
        return states_btd

    def logits(self, states_pd: Tensor) -> Tensor:
        """Logits (p, v) in fp32."""
        if not self.has_plain_head:
            return states_pd.float()
        logits_pv: Tensor = self._transform_logits(self._head(states_pd))
        return logits_pv.float()

    def log_probs(self, states_pd: Tensor, position_n: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
        """log p of each target at its position in `states_pd`, in fp32, and whether it is the most probable token.

        One block of logits exists at a time. log_softmax is not used: with 49k words its error is 5e-6 for every token.
        """
        size = self.block
        log_prob_n = torch.empty(len(targets_n), device=self.device)
        greedy_n = torch.empty(len(targets_n), dtype=torch.bool, device=self.device)
        for start in range(0, len(states_pd), size):
            logits_pv = self.logits(states_pd[start : start + size])
            best_p, likeliest_p = logits_pv.max(-1)
            (n,) = torch.nonzero((position_n >= start) & (position_n < start + size), as_tuple=True)
            p, target_n = position_n[n] - start, targets_n[n]
            target_logit_n = logits_pv[p, target_n]
            # In place: a second block would double the memory.
            log_sum_p = best_p + logits_pv.sub_(best_p[:, None]).exp_().sum(-1).log()
            log_prob_n[n], greedy_n[n] = target_logit_n - log_sum_p[p], likeliest_p[p] == target_n
        return log_prob_n, greedy_n

    def require_states(self) -> None:
        """Raise UserError if `rows` and the others give no hidden states, from which values of numbers are computed."""
        if not self.has_plain_head:
            raise UserError(f"{type(self.model).__name__} changes its hidden states before its output layer")

    @property
    def has_pointer(self) -> bool:
        """Whether it may copy numbers: then the last layer of its cache holds the pointer's keys."""
        return self._pointer is not None

    def keys(self, row: int, size: int) -> Tensor:
        """The pointer's keys (t, r), with which a number may be copied later, of the first tokens of a row that was
        read last.
        """
        assert self._pointer is not None
        keys_tr: Tensor = self._pointer.keys(self.key_states_btd[row, :size])
        return keys_tr

    def number(
        self, state_d: Tensor, key_kr: Tensor | None, ids: Sequence[int], cause: Cause | None = None
    ) -> tuple[int, tuple[float, float]]:
        """The number (its id) that is written behind `ids`: the median of its distribution, or what the cause decides;
        rounded. Also the ends of its central 90 % interval.
        """
        found = numeric.next_value(self.model, state_d, key_kr, ids)
        require_finite(bool(found.location_m.isfinite().all()))
        assert self.numbers is not None
        median, low, high = map(float, found.quantiles([0.5, *self.numbers.interval_shares[2:]]))
        if cause is not None:
            median = float(found.drawn(cause.deviation, cause.share).quantiles((0.5,))[0])
        earlier = [value_of(one) for one in ids if is_number(one)]
        return number_id(rounded(median, reversed(earlier))), (low, high)

    def _remember(self, cache: Any, is_new: bool) -> None:
        """Keep the pointer's keys as one more layer of the cache, without values."""
        if self._pointer is None or not self.has_plain_head:  # without hidden states no number is written
            return
        key_b1tr = self._pointer.keys(self.key_states_btd)[:, None]
        if is_new:
            cache.layers.append(DynamicLayer())
        cache.layers[-1].update(key_b1tr, key_b1tr[..., :0])

    def inputs(self, ids_bt: Tensor) -> dict[str, Tensor]:
        """The model's inputs for ids of prompts: tokens, or their embeddings with the values of numbers."""
        ids_bt = ids_bt.to(self.device)
        if self.numbers is None:
            return {"input_ids": ids_bt}
        tokens_bt, values_bt = numeric.separated(ids_bt, self.numbers.token_id)
        embeddings_btd = self.model.get_input_embeddings()(tokens_bt)
        return {"inputs_embeds": self.model.numeric.direction(embeddings_btd, values_bt)}

    def tokens_of(self, ids_n: Tensor) -> Tensor:
        """Ids of prompts as ids of the vocabulary."""
        return ids_n if self.numbers is None else numeric.separated(ids_n, self.numbers.token_id)[0]

    @property
    def block(self) -> int:
        """Positions whose logits are computed at once."""
        return max(LOGITS_AT_ONCE.get(self.device.type, 2**23) // int(self.config.vocab_size), LEAST_BLOCK)

    def _states(self, ids_bt: Tensor, **keywords: Any) -> Tensor:
        """Last hidden states; logits if these are not simply hidden states times output embeddings."""
        inputs = self.inputs(ids_bt)
        if self.has_plain_head:
            with middle_states.kept() as kept:
                states_btd: Tensor = self.model.base_model(**inputs, **keywords).last_hidden_state
            if self.numbers is not None:
                self.key_states_btd = states_btd if self.numbers.key_layer is None else kept[-1]
            return states_btd
        logits_btv: Tensor = self.model(**inputs, **keywords).logits
        return logits_btv

    def _masks(self, visible_btk: Tensor, distance_tk: Tensor) -> Any:
        """One attention mask, or one for each type of layer, as the model expects it."""
        kinds, window = set(getattr(self.config, "layer_types", None) or ()), self._window
        if window is None:
            return self._additive(visible_btk)
        near_btk = visible_btk & (distance_tk < window)
        if "full_attention" not in kinds:
            return self._additive(near_btk)
        return {"full_attention": self._additive(visible_btk), "sliding_attention": self._additive(near_btk)}

    def _additive(self, visible_btk: Tensor) -> Tensor:
        zeros_btk = torch.zeros(visible_btk.shape, dtype=self.dtype, device=self.device)
        return zeros_btk.masked_fill_(~visible_btk, torch.finfo(self.dtype).min)[:, None]

    @property
    def _window(self) -> int | None:
        """Size of the sliding attention window; None without such a layer."""
        kinds = set(getattr(self.config, "layer_types", None) or ())
        return getattr(self.config, "sliding_window", None) if not kinds or "sliding_attention" in kinds else None

    def _transform_logits(self, logits: Any) -> Any:
        """Apply the soft cap or scaling that the configuration asks for after the output embeddings."""
        cap = getattr(self.config, "final_logit_softcapping", None)
        if cap:
            return torch.tanh(logits / cap) * cap
        factor = getattr(self.config, "logit_scale", None)
        divisor = getattr(self.config, "logits_scaling", None)
        return logits * factor if factor else logits / divisor if divisor else logits

    @torch.inference_mode()
    def _head_is_plain(self) -> bool:
        """Whether `logits` reproduces the model's logits from its last hidden states exactly; tested by a trial run."""
        if self._head is None or self.model.base_model is self.model:
            return False
        ids_bt = torch.tensor(PROBE[:1], device=self.device)
        whole_btv = self.model(input_ids=ids_bt, use_cache=False).logits
        hidden_btd = self.model.base_model(input_ids=ids_bt, use_cache=False).last_hidden_state
        # Without tolerance: a cap hardly changes small logits.
        return torch.equal(self._transform_logits(self._head(hidden_btd)), whole_btv)

    @torch.inference_mode()
    def _prefixes_can_be_shared(self) -> bool:
        if not self._cache_is_plain():
            return False
        sequences = sorted_sequences([(ids, PROBE_PREFIX) for ids in PROBE])
        pack = next_pack(sequences, PROBE_PREFIX, limit=64)
        try:
            prefix = self.pack(chain(sequences[0].ids[:PROBE_PREFIX], 0), [])[1]
            states_td, _ = self.pack(pack, prefix)
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, NotImplementedError):
            return False  # families reject masks with many types of error
        whole_btd, _ = self.rows([sequence.ids for sequence in sequences])
        tolerance = CLOSE.get(self.dtype, CLOSE_IN_HALF)
        return all(
            bool((states_td[path] - own_td).norm() <= tolerance * own_td.norm())
            for path, sequence, row_td in zip(pack.token_indices, sequences, whole_btd, strict=True)
            for own_td in [row_td[pack.shared : len(sequence.ids)]]
        )

    def _cache_is_plain(self) -> bool:
        config = self.config
        rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
        layers = DynamicCache(config=config).layers
        return (
            not getattr(self.model, "_is_stateful", False)
            and getattr(config, "_attn_implementation", None) in MASKED
            and set(getattr(config, "layer_types", None) or ()) <= KINDS
            and "local" not in (getattr(config, "attention_layers", None) or ())  # GPT-Neo windows ignore position_ids
            and rotation not in LENGTH_DEPENDENT_ROPE
            and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
        )


class Prefix:
    """One cached prefix; requesting another one reuses what both have in common."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.forget()

    def forget(self) -> None:
        """Drop the cached prefix."""
        self._ids: Tokens = np.zeros(0, dtype=np.int64)
        self._key_values: KeyValues = []

    def common(self, ids: Tokens) -> int:
        """How many of the first `ids` are cached."""
        return common(ids, self._ids)

    def of(self, ids: Tokens, limit: int) -> KeyValues:
        """Keys and values of `ids`; tokens that are not cached run in chunks of at most `limit`."""
        done = self.common(ids)
        if done < len(ids):
            kept = _first(self._key_values, done)
            self.forget()  # frees the memory before the new prefix is computed
            while done < len(ids):
                until = min(done + limit, len(ids))
                _, kept = self._network.pack(chain(ids[:until], done), kept)
                done = until
            self._ids, self._key_values = ids, kept
        return _first(self._key_values, len(ids))


def key_values(cache: Any) -> KeyValues:
    """The keys and values of a transformers cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def _first(cached: KeyValues, size: int) -> KeyValues:
    return [(keys[:, :, :size], values[:, :, :size]) for keys, values in cached] if size else []


def _cache(cached: KeyValues) -> DynamicCache:
    """A transformers cache that starts with `cached` and never modifies it."""
    cache = DynamicCache()
    for keys, values in cached:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache
