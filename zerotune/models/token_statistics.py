"""Log-probability, entropy and value of chosen tokens, computed in the output layer: the logits of a chunk of positions
exist at a time. For the backward pass they are made again, unless the layer is frozen and they need not be.

Shape suffixes: b rows, t positions, n positions with a target, d hidden size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zerotune.common.errors import UserError
from zerotune.models import loss_head
from zerotune.models.head_source import gives_logits_unchanged
from zerotune.models.loss_head import (
    LossHead,
    at_targets,
    causal_lm,
    chunk_rows,
    is_frozen_linear,
    output_layer,
    predicting,
)

VALUE_HEAD = "value_head"  # the name under which a model carries what gives its values


class Statistics(NamedTuple):
    """Of each token with a target, in float32. value_n: zeros where the model has no value head."""

    log_p_n: Tensor
    entropy_n: Tensor
    value_n: Tensor


class ValueHead(nn.Module):
    """One number for each hidden state, in float32. No `nn.Linear`, so that no adapter takes it for a layer of the
    model's. Without a bias, since ZeRO-3 fills up a single number with whatever lies in memory: hidden states are not
    centred on 0, and serve as one.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))  # the first value of everything is 0

    def forward(self, hidden_nd: Tensor) -> Tensor:
        """[n]."""
        return (hidden_nd.float() * self.weight.float()).sum(-1)  # autocast would multiply matrices in fewer bits


class ValueModel(nn.Module):
    """A network of its own with a value head. A part of the language model, so that wrappers see its forward pass."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.head = ValueHead(int(body.config.get_text_config().hidden_size))

    def forward(self, inputs: Mapping[str, Any], targets_bt: Tensor) -> Tensor:
        """[n]: of the positions that have a target."""
        hidden_btd: Tensor = self.body(**inputs).last_hidden_state
        values_n: Tensor = self.head(at_targets(hidden_btd, targets_bt)[0])
        return values_n


def add_value_head(model: nn.Module, body: Any = None) -> None:
    """Give a (tuned) language model trained values: a head on its own last hidden states, or on those of `body`, which
    is then trained whole.
    """
    base: Any = causal_lm(model)
    if body is None:
        head: nn.Module = ValueHead(int(base.config.get_text_config().hidden_size))
    else:
        head = ValueModel(body.requires_grad_(True))
    setattr(base, VALUE_HEAD, head.to(base.device))


def require_plain_head(model: nn.Module) -> None:
    """Raise UserError for a model that changes its logits after the output layer."""
    if not gives_logits_unchanged(causal_lm(model), output_layer(model)):
        name = type(causal_lm(model)).__name__
        raise UserError(
            f"objective: ppo reads probabilities in the output layer, and {name} changes its logits after it"
        )


def token_statistics(
    model: nn.Module,
    inputs: Mapping[str, Any],
    targets_bt: Tensor,
    temperature: float = 1.0,
    learn_entropy: bool = True,
    values: bool = True,
) -> Statistics:
    """Of the targets that are not -100, in their order, under the model at a temperature.

    Args:
        model: A transformers language model, possibly adapted and wrapped; see `require_plain_head`.
        inputs: Keyword arguments of its forward.
        targets_bt: For each position the token that follows it.
        learn_entropy: Whether the entropy shall have gradients; without them the pass is cheaper.
        values: False leaves them 0, and saves their computation.
    """
    loss_head.install(model)
    value_head = getattr(causal_lm(model), VALUE_HEAD, None) if values else None

    def answer(layer: LossHead, hidden_nd: Tensor, targets_n: Tensor) -> Tensor:
        if is_frozen_linear(layer) and not learn_entropy:
            found_2n = torch.stack(_FrozenHead.apply(hidden_nd, layer, targets_n, temperature))
        else:
            found_2n = _checkpointed(hidden_nd, layer, targets_n, temperature, learn_entropy)
        value_n = _values(value_head, hidden_nd, inputs, targets_bt)
        return torch.cat([found_2n, value_n.float()[None]])

    with predicting(targets_bt, answer):
        found_3n: Tensor = model(**inputs).logits
    if found_3n.ndim != 2 or len(found_3n) != 3:
        raise RuntimeError(f"{type(causal_lm(model)).__name__}: the output layer was not asked")
    return Statistics(*found_3n)


def token_loss(model: nn.Module, inputs: Mapping[str, Any], targets_bt: Tensor) -> Tensor:
    """As `loss_head.token_loss`, but what gives the values gets gradients of 0. Without any, DDP would wait for them,
    and the optimizer would move it on some shardings only.
    """
    value_head = getattr(causal_lm(model), VALUE_HEAD, None)
    if value_head is None:
        return loss_head.token_loss(model, inputs, targets_bt)
    loss_head.install(model)
    one = {"input_ids": inputs["input_ids"][:1, :1], "use_cache": False}

    def answer(layer: LossHead, hidden_nd: Tensor, targets_n: Tensor) -> Tensor:
        value_n = _values(value_head, hidden_nd[:1], one, torch.zeros_like(one["input_ids"]))
        return layer.summed_loss(hidden_nd, targets_n) + 0.0 * value_n.sum()

    with predicting(targets_bt, answer):
        loss: Tensor = model(**inputs).logits
    return loss


def _values(value_head: nn.Module | None, hidden_nd: Tensor, inputs: Mapping[str, Any], targets_bt: Tensor) -> Tensor:
    if value_head is None:
        return hidden_nd.new_zeros(len(hidden_nd))
    found_n: Tensor = value_head(inputs, targets_bt) if isinstance(value_head, ValueModel) else value_head(hidden_nd)
    return found_n


def _checkpointed(
    hidden_nd: Tensor, layer: LossHead, targets_n: Tensor, temperature: float, learn_entropy: bool
) -> Tensor:
    """Log-probability and entropy for any projection: each chunk is computed again in the backward."""

    def chunk(part_nd: Tensor, part_n: Tensor) -> Tensor:
        log_p_nv = (layer.logits(part_nd).float() / temperature).log_softmax(-1)
        shown_nv = log_p_nv if learn_entropy else log_p_nv.detach()
        entropy_n = -(shown_nv.exp() * shown_nv).sum(-1)
        return torch.stack([log_p_nv.gather(1, part_n[:, None])[:, 0], entropy_n])

    size = chunk_rows(layer.vocabulary, hidden_nd.device)
    pieces = zip(hidden_nd.split(size), targets_n.split(size), strict=True)
    return torch.cat([checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces], 1)


class _FrozenHead(torch.autograd.Function):
    """Where only the hidden states learn, d log p / d h is known with the logits at hand, up to a factor for each token
    that the loss gives later: no logits are made again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_nd: Tensor, layer: Any, targets_n: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        log_p_n, entropy_n = hidden_nd.new_empty((2, len(targets_n)), dtype=torch.float32)
        slope_nd = torch.empty_like(hidden_nd) if ctx.needs_input_grad[0] else None
        size = chunk_rows(layer.vocabulary, hidden_nd.device)
        for start in range(0, len(targets_n), size):
            part = slice(start, start + size)
            target_n1 = targets_n[part, None]
            logits_nv = layer.logits(hidden_nd[part])
            dtype = logits_nv.dtype
            # In place, so that two tensors of this size exist. Not by log_softmax: see zerotune.inference.causal_lm.
            below_nv = logits_nv.float().div_(temperature)
            del logits_nv
            below_nv -= below_nv.amax(-1, keepdim=True)
            p_nv = below_nv.exp()
            sum_n1 = p_nv.sum(-1, keepdim=True)
            log_sum_n1 = sum_n1.log()
            target_log_p_n1 = below_nv.gather(1, target_n1) - log_sum_n1
            p_nv /= sum_n1
            log_p_n[part] = target_log_p_n1[:, 0]
            entropy_n[part] = log_sum_n1[:, 0] - below_nv.mul_(p_nv).sum(-1)
            del below_nv
            if slope_nd is not None:
                p_nv.neg_().scatter_(1, target_n1, -target_log_p_n1.expm1())
                slope_nd[part] = (p_nv.to(dtype) @ layer.weight) / temperature
        ctx.save_for_backward(slope_nd)
        ctx.mark_non_differentiable(entropy_n)
        return log_p_n, entropy_n

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> tuple[Tensor, None, None, None]:
        (slope_nd,) = ctx.saved_tensors
        return (slope_nd * factors[0][:, None]).to(slope_nd.dtype), None, None, None
