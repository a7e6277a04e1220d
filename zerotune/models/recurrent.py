"""Recurrent language models from scratch, an RNN and an LSTM, as models of transformers.

`register` makes them known to its Auto classes: they are trained, adapted, merged and evaluated like any checkpoint.

Shape suffixes: b rows, t positions, n tokens in the order of a scan, d width, v vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from zerotune.models.attention import document_lengths, row_starts
from zerotune.models.recurrence import LstmLayer, Recurrent, RnnLayer, State, Steps, Transition

EVERYTHING = 2**62  # steps: gradients go back to the start of the row


@strict
class RnnConfig(PreTrainedConfig):
    """Sizes of an RNN.

    bptt_tokens: how far gradients go back (truncated back-propagation through time); None: to the start of the row.
    initializer_range: embeddings are drawn from [-initializer_range, initializer_range].
    """

    model_type = "zerotune_rnn"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 10_000
    hidden_size: int = 256
    num_hidden_layers: int = 2
    dropout: float = 0.0
    bptt_tokens: int | None = None
    initializer_range: float = 0.1
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


@strict
class LstmConfig(RnnConfig):
    """Sizes of an LSTM; those of an RNN."""

    model_type = "zerotune_lstm"


@dataclass
class RecurrentState:
    """What a model remembers of each row: takes the place of a cache of keys and values in generation.

    layers: of each layer, [b, d] tensors. tokens: how many it has read.
    """

    layers: list[State]
    tokens: int
    is_compileable: ClassVar[bool] = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """As of transformers' caches."""
        return self.tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """As of transformers' caches: for beam search."""
        self.layers = [tuple(part.index_select(0, beam_idx) for part in state) for state in self.layers]


class RecurrentModel(PreTrainedModel):
    """What both families have in common.

    keeps_rows_apart: see `zerotune.models.attention.can_pack`.
    """

    config_class = RnnConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["RnnLayer", "LstmLayer"]
    _is_stateful = True
    _supports_sdpa = _supports_attention_backend = _supports_flash_attn = True  # it has none: any will do
    keeps_rows_apart = True

    def _init_weights(self, module: nn.Module) -> None:
        """Inputs by Glorot and Bengio (2010) for tanh, recurrent matrices orthogonal (Saxe et al., 2014), forget gates
        open (Jozefowicz et al., 2015). With torch's smaller inputs the signal fades from layer to layer, and for
        hundreds of steps nothing is learned but the frequencies of words (docs/decisions/0025).
        """
        width, outside = self.config.hidden_size, self.config.initializer_range
        if isinstance(module, LstmLayer):
            init.copy_(module.bias, F.pad(torch.ones(width), (width, 2 * width)))
        elif isinstance(module, Recurrent):
            gates = len(module.weight) // width
            init.copy_(module.weight, torch.cat([nn.init.orthogonal_(torch.empty(width, width)) for _ in range(gates)]))
        elif isinstance(module, (nn.Embedding, nn.Linear)):
            has_bias = getattr(module, "bias", None) is not None  # the input of an RNN; the output layer has none
            is_input = has_bias or isinstance(module, Transition)
            limit = nn.init.calculate_gain("tanh") * math.sqrt(3 / width) if is_input else outside
            init.uniform_(module.weight, -limit, limit)
            if has_bias:
                init.zeros_(cast(Tensor, module.bias))


class ScaledEmbedding(nn.Embedding):
    """Embeddings of unit size, from weights small enough for the output layer that may share them
    (Vaswani et al., 2017).
    """

    @property
    def embed_scale(self) -> float:
        """PEFT's name: adapters multiply by it too."""
        return math.sqrt(self.embedding_dim)

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.embed_scale


class RnnModel(RecurrentModel):
    """Tokens to hidden states."""

    layer_class: type[RnnLayer] | type[LstmLayer] = RnnLayer

    def __init__(self, config: RnnConfig) -> None:
        super().__init__(config)
        self.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(self.layer_class(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Rows are those of the batch; of a packed batch, those that `cu_seq_lens_q`, or else `position_ids`, mark.

        attention_mask [b, t]: 0 for padding, on either side, which changes no state.
        past_key_values: a `RecurrentState` to continue from.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        steps = _steps(given, attention_mask, cu_seq_lens_q, position_ids)
        state = past_key_values if isinstance(past_key_values, RecurrentState) else None
        if state is None and past_key_values is not None and past_key_values.get_seq_length():
            raise ValueError("past_key_values: a recurrent model continues from its own state alone")
        tokens = given.flatten(0, 1).index_select(0, steps.order_n)
        x_nd: Tensor = self.dropout(self.embed_tokens(tokens) if inputs_embeds is None else tokens)
        keep = self.config.use_cache if use_cache is None else use_cache
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden = [steps.placed(x_nd, given)] if wanted else []
        layers: list[State] = []
        for number, layer in enumerate(self.layers):
            before = self._first_state(layer, x_nd, steps) if state is None else state.layers[number]
            before = tuple(part.index_select(0, steps.row_b) for part in before)
            x_nd, after = layer(x_nd, steps, before, self.config.bptt_tokens or EVERYTHING, keep)
            x_nd = self.dropout(x_nd)
            layers.append(tuple(torch.empty_like(part).index_copy(0, steps.row_b, part) for part in after))
            hidden += [steps.placed(x_nd, given)] if wanted else []
        after_all = RecurrentState(layers, given.shape[1] + (state.tokens if state else 0)) if keep else None
        return BaseModelOutputWithPast(
            last_hidden_state=cast(Any, hidden[-1] if wanted else steps.placed(x_nd, given)),
            past_key_values=cast(Any, after_all),
            hidden_states=cast(Any, tuple(hidden) if wanted else None),
        )

    @staticmethod
    def _first_state(layer: Any, x_nd: Tensor, steps: Steps) -> State:
        return tuple(x_nd.new_zeros(len(steps.row_b), x_nd.shape[-1]) for _ in range(layer.states))


def _steps(batch: Tensor, mask_bt: Tensor | None, starts: Tensor | None, position_ids: Tensor | None) -> Steps:
    rows, width = batch.shape[:2]
    every_n = torch.arange(rows * width, device=batch.device)
    if mask_bt is not None:
        if mask_bt.ndim != 2:
            raise ValueError("attention_mask: a recurrent model needs one [rows, positions]")
        is_token_bt = mask_bt[:, -width:].bool()
        return Steps.of(every_n[is_token_bt.flatten()], is_token_bt.sum(1).tolist())
    if starts is None and position_ids is not None:
        starts = row_starts(position_ids, width)
    return Steps.of(every_n, [width] * rows if starts is None else document_lengths(starts))


class RnnForCausalLM(RecurrentModel, GenerationMixin):
    """An RNN that predicts the next token."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    model_class: type[RnnModel] = RnnModel

    def __init__(self, config: RnnConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As of `RnnModel`; logits of the last `logits_to_keep` positions (0: of all), or of the positions in it."""
        output = self.model(input_ids, attention_mask, return_dict=True, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=output.past_key_values, hidden_states=output.hidden_states
        )


class LstmModel(RnnModel):
    """The same with LSTM layers."""

    config_class = LstmConfig
    layer_class = LstmLayer


class LstmForCausalLM(RnnForCausalLM):
    """An LSTM that predicts the next token."""

    config_class = LstmConfig
    model_class = LstmModel


MODELS = {"RnnForCausalLM": RnnForCausalLM, "LstmForCausalLM": LstmForCausalLM}


def register() -> None:
    """Make the families known to transformers' Auto classes; repeated calls have no effect."""
    for config, model, causal_lm in (
        (RnnConfig, RnnModel, RnnForCausalLM),
        (LstmConfig, LstmModel, LstmForCausalLM),
    ):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
