"""The configurations of new models: what `FAMILIES` of train/registry.py names."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, PreTrainedConfig

from train.config import ModelConfig
from train.model_sizes import sizes_of
from zerotune.models.recurrent import LstmConfig, RnnConfig


def rnn(model: ModelConfig, positions: int, tokens: dict[str, Any]) -> PreTrainedConfig:
    """An RNN by hand.

    Args:
        model: The recipe's `model`.
        positions: The longest row.
        tokens: vocab_size and the ids of special tokens, as transformers names them.
    """
    return RnnConfig(**_recurrent(model), **tokens)


def lstm(model: ModelConfig, positions: int, tokens: dict[str, Any]) -> PreTrainedConfig:
    """An LSTM on torch's own."""
    return LstmConfig(**_recurrent(model), **tokens)


def _recurrent(model: ModelConfig) -> dict[str, Any]:
    sizes = sizes_of(model)
    return {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "dropout": model.dropout,
        "bptt_tokens": model.bptt_tokens,
        "tie_word_embeddings": model.tie_embeddings,
    }


def transformer(model: ModelConfig, positions: int, tokens: dict[str, Any]) -> PreTrainedConfig:
    """A small Llama."""
    sizes = sizes_of(model)
    return LlamaConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.feed_forward,
        attention_dropout=model.dropout,
        max_position_embeddings=positions,
        tie_word_embeddings=model.tie_embeddings,
        **tokens,
    )
