"""Log-probability, entropy and value of chosen tokens, computed in the output layer: the logits of a chunk of positions
exist at a time, and are made again for the backward pass.

Shape suffixes: b rows, t positions, n positions with a target, d hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.errors import UserError
from train.models import loss_head
from train.models.head_source import gives_logits_unchanged
from train.models.loss_head import LossHead, causal_lm, chunk_rows, output_layer, predicting

VALUE_HEAD = "value_head"  # the name under which a model carries it


class Statistics(NamedTuple):
    """Of each token with a target, in float32. value_n: zeros where the model has no value head."""

    log_p_n: Tensor
    entropy_n: Tensor
    value_n: Tensor


class ValueHead(nn.Module):
    """One number for each hidden state. No `nn.Linear`, so that no adapter takes it for a layer of the model's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))  # the first value of everything is 0
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_nd: Tensor) -> Tensor:
        """[n]."""
        return hidden_nd.float() @ self.weight.float() + self.bias.float()


def add_value_head(model: nn.Module) -> None:
    """Give a (tuned) language model a trained value head on its last hidden states."""
    base: Any = causal_lm(model)
    head = ValueHead(int(base.config.get_text_config().hidden_size)).to(base.device)
    setattr(base, VALUE_HEAD, head)


def require_plain_head(model: nn.Module) -> None:
    """Raise UserError for a model that changes its logits after the output layer."""
    if not gives_logits_unchanged(causal_lm(model), output_layer(model)):
        name = type(causal_lm(model)).__name__
        raise UserError(
            f"objective: ppo reads probabilities in the output layer, and {name} changes its logits after it"
        )


def token_statistics(
    model: nn.Module, inputs: Mapping[str, Any], targets_bt: Tensor, temperature: float = 1.0
) -> Statistics:
    """Of the targets that are not -100, in their order, under the model at a temperature.

    Args:
        model: A transformers language model, possibly adapted and wrapped; see `require_plain_head`.
        inputs: Keyword arguments of its forward.
        targets_bt: For each position the token that follows it.
    """
    loss_head.install(model)
    value_head = getattr(causal_lm(model), VALUE_HEAD, None)

    def answer(layer: LossHead, hidden_nd: Tensor, targets_n: Tensor) -> Tensor:
        def chunk(part_nd: Tensor, part_n: Tensor) -> Tensor:
            log_p_nv = (layer.logits(part_nd).float() / temperature).log_softmax(-1)
            entropy_n = -(log_p_nv.exp() * log_p_nv).sum(-1)
            return torch.stack([log_p_nv.gather(1, part_n[:, None])[:, 0], entropy_n])

        size = chunk_rows(layer.vocabulary, hidden_nd.device)
        pieces = zip(hidden_nd.split(size), targets_n.split(size), strict=True)
        found_2n = torch.cat([checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces], 1)
        value_n = hidden_nd.new_zeros(len(hidden_nd)) if value_head is None else value_head(hidden_nd)
        return torch.cat([found_2n, value_n.float()[None]])

    with predicting(targets_bt, answer):
        found_3n: Tensor = model(**inputs).logits
    if found_3n.ndim != 2 or len(found_3n) != 3:
        raise RuntimeError(f"{type(causal_lm(model)).__name__}: the output layer was not asked")
    return Statistics(*found_3n)
