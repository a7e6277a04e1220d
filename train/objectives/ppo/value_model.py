"""A separate model for the values (`ppo.value_model`): checked against the policy, then loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModel

from train.config import Config, ModelConfig
from train.models.load import learned_positions, load_model, load_tokenizer, skeleton
from train.objectives.ppo.logprobs import disable_dropout
from zerotune.common.errors import UserError
from zerotune.models import attention
from zerotune.models.precision import DTYPES
from zerotune.models.token_statistics import VALUE_HEAD

KEY = "ppo.value_model"


def load_value_model(config: Config, tokenizer: Any, longest: int, packed: bool, device: torch.device) -> Any:
    """The model without its head, in float32.

    longest: tokens of a prompt with its response. packed: whether several share a row. Raises UserError if the model
    has another tokenizer than the policy, too few positions, or is not causal.
    """
    chosen = replace(config.model, path=config.settings.value_model, revision=None, init="pretrained", tokenizer=None)
    try:
        _require_tokens(chosen, tokenizer)
        _require_body(chosen, len(tokenizer), longest, packed)
        body: Any = load_model(
            AutoModel,
            chosen,
            dtype=torch.float32,
            attention=attention.implementation(chosen.attention, packed, device, DTYPES[config.run.precision]),
            seed=config.run.seed,
            new=[VALUE_HEAD],
        )
    except UserError as error:
        raise UserError(f"{KEY}: {error}") from error
    disable_dropout(body)
    if chosen.gradient_checkpointing:
        body.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return body


def _require_tokens(chosen: ModelConfig, tokenizer: Any) -> None:
    known = load_tokenizer(chosen).get_vocab()
    other = next((token for token, number in tokenizer.get_vocab().items() if known.get(token) != number), None)
    if other is not None:
        raise UserError(
            f"the policy's token {other!r} has another number in {chosen.path}, or none; both need the same tokenizer. "
            "Use another model, or remove the key"
        )


def _require_body(chosen: ModelConfig, tokens: int, longest: int, packed: bool) -> None:
    body = skeleton(AutoModel, chosen)
    if body.config.is_encoder_decoder or any(getattr(m, "is_causal", None) is False for m in body.modules()):
        raise UserError(f"{chosen.path} is an encoder: its values would depend on later tokens; use a decoder")
    if packed and not attention.can_pack(body):
        raise UserError(f"{chosen.path} cannot separate packed rows; set batch.layout to padded")
    rows, positions = int(body.get_input_embeddings().weight.shape[0]), learned_positions(body)
    if rows < tokens:
        raise UserError(f"{chosen.path} has embeddings for {rows:,} tokens, but the tokenizer has {tokens:,}")
    if positions is not None and positions < longest:
        raise UserError(f"{chosen.path} has {positions:,} positions, but a prompt with its response needs {longest:,}")
