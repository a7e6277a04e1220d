"""The loss computed inside the model's output layer, so that no [batch, time, vocabulary] tensor ever exists.

While `predicting(targets)` is active, the output layer gives the sum of -log p(target) in place of logits: it projects
only the positions that have a target, in chunks, and takes the gradients in the same pass (decision 0003). The work
stays inside the module's own forward, where DeepSpeed ZeRO-3 and FSDP gather its weight. Outside, it gives logits.

Shape suffixes: b rows, t positions, n positions with a target, d hidden size, v vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zerotune.models.head_source import gives_logits_unchanged
from zerotune.models.precision import product_dtype

log = logging.getLogger(__name__)

IGNORED = -100
CHUNK_ELEMENTS = 2**25  # logits of one chunk on a CPU: 128 MiB in float32, yet products large enough for full speed
GPU_CHUNKS = 4  # times larger: there each chunk's pass over the weight's gradient in memory costs more than its product
LARGE_VOCABULARY = 2**18  # assumed of a layer that does not tell its size
Project = Callable[[Tensor], Tensor]  # hidden_nd -> logits_nv
Answer = Callable[["LossHead", Tensor, Any], Tensor]  # (layer, hidden_nd, targets_n) -> in place of logits


class HeadRequest(NamedTuple):
    """The output that installed output layers compute instead of logits, at the positions that have a target; without
    targets, at all.
    """

    targets_bt: Tensor | None
    answer: Answer


_REQUEST: ContextVar[HeadRequest | None] = ContextVar("request", default=None)


@contextmanager
def predicting(targets_bt: Tensor | None, answer: Answer | None = None) -> Iterator[None]:
    """Inside, installed output layers give the summed loss over `targets_bt` (already shifted, -100 ignored), or
    another `answer`; with neither, logits. Without targets, an answer gets all hidden states, and None.
    """
    is_asked = targets_bt is not None or answer is not None
    token = _REQUEST.set(HeadRequest(targets_bt, answer or LossHead.summed_loss) if is_asked else None)
    try:
        yield
    finally:
        _REQUEST.reset(token)


def is_predicting() -> bool:
    """Whether `predicting` is active with targets or an answer."""
    return _REQUEST.get() is not None


def install(model: nn.Module) -> None:
    """Teach the model's output layer to give the loss; the layer keeps its parameters, hooks and name.

    Changes nothing where it is done already, so it may be called again after an adapter has replaced the layer; and
    nothing where the model changes its logits afterwards, so that all of them are needed.
    """
    head = output_layer(model)
    if not gives_logits_unchanged(causal_lm(model), head):
        log.info(
            "%s changes its logits after the output layer: the loss takes all of them at once, and more memory",
            type(causal_lm(model)).__name__,
        )
    elif not isinstance(head, LossHead):
        head.__class__ = _with_loss(cast(Any, type(head)))


def token_loss(model: nn.Module, inputs: Mapping[str, Any], targets_bt: Tensor) -> Tensor:
    """Sum of -log p over the targets that are not -100; a float32 scalar.

    Args:
        model: A transformers model with a language-model head, possibly adapted and wrapped.
        inputs: Keyword arguments of its forward.
        targets_bt: For each position the token that follows it. Positions that an adapter puts in front have none.
    """
    if not gives_logits_unchanged(causal_lm(model), output_layer(model)):
        logits_btv: Tensor = model(**inputs).logits
        return _loss_of_logits(logits_btv, targets_bt)
    install(model)
    with predicting(targets_bt):
        loss: Tensor = model(**inputs).logits
    if loss.ndim:
        raise RuntimeError(f"{type(causal_lm(model)).__name__}: the output layer was not asked for its loss")
    return loss


class Further(Protocol):
    """A second loss, of some targets."""

    def is_meant(self, targets_n: Tensor) -> Tensor:
        """Whether a target has it."""
        ...

    def __call__(self, logits_kv: Tensor, targets_k: Tensor) -> Tensor:
        """The sum over such targets, of which there may be none."""
        ...


def token_losses(model: nn.Module, inputs: Mapping[str, Any], targets_bt: Tensor, further: Further) -> Tensor:
    """[2]: as `token_loss`, and the sum of a further loss, whose logits are computed once more, in chunks."""

    def both(first: Tensor, project: Project, hidden_nd: Tensor, targets_n: Tensor, vocabulary: int) -> Tensor:
        k = further.is_meant(targets_n).nonzero()[:, 0]
        return torch.stack([first, _checkpointed_loss(project, hidden_nd[k], targets_n[k], vocabulary, further)])

    def answer(layer: LossHead, hidden_nd: Tensor, targets_n: Tensor) -> Tensor:
        return both(layer.summed_loss(hidden_nd, targets_n), layer.logits, hidden_nd, targets_n, layer.vocabulary)

    if not gives_logits_unchanged(causal_lm(model), output_layer(model)):
        logits_btv: Tensor = model(**inputs).logits
        first = _loss_of_logits(logits_btv, targets_bt)
        return both(first, lambda logits_nv: logits_nv, *at_targets(logits_btv, targets_bt), logits_btv.shape[-1])
    install(model)
    with predicting(targets_bt, answer):
        losses_2: Tensor = model(**inputs).logits
    return losses_2


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP, DeepSpeed, FSDP and compile wrappers; adapters stay."""
    while True:
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers and adapters."""
    inner: Any = unwrapped(model)
    return cast(nn.Module, inner.get_base_model() if hasattr(inner, "get_base_model") else inner)


def output_layer(model: nn.Module) -> nn.Module:
    """The module that maps hidden states to logits; of a layer that an adapter trains as a copy, that copy."""
    head: Any = cast(Any, causal_lm(model)).get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(causal_lm(model)).__name__} has no output layer over a vocabulary")
    copies, active = getattr(head, "modules_to_save", None), getattr(head, "active_adapters", None)
    return cast(nn.Module, copies[active[0]] if copies is not None and active else head)


def is_frozen_linear(layer: nn.Module) -> bool:
    """Whether an installed output layer is a plain product whose parameters do not learn."""
    plain = isinstance(layer, nn.Linear) and bool(type(layer).linear_forward)  # type: ignore[attr-defined]
    return plain and not any(parameter.requires_grad for parameter in layer.parameters())


class LossHead(nn.Module):
    """Mixed in front of an output layer's own class."""

    def forward(self, hidden_btd: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Logits; while predicting, the requested output instead, by default the summed loss."""
        request = _REQUEST.get()
        if request is None:
            return cast(Tensor, super().forward(hidden_btd, *args, **kwargs))
        if request.targets_bt is None:
            return request.answer(self, hidden_btd, None)
        return request.answer(self, *at_targets(hidden_btd, request.targets_bt))

    def logits(self, hidden_nd: Tensor) -> Tensor:
        """Logits, even while predicting."""
        with predicting(None):
            return self.forward(hidden_nd)

    def summed_loss(self, hidden_nd: Tensor, targets_n: Tensor) -> Tensor:
        """Sum of -log p of the targets."""
        if isinstance(self, nn.Linear) and type(self).linear_forward:  # type: ignore[attr-defined]
            return linear_loss(hidden_nd, self.weight, self.bias, targets_n)
        return _checkpointed_loss(self.logits, hidden_nd, targets_n, self.vocabulary)

    @property
    def vocabulary(self) -> int:
        """How many logits there are of a position."""
        return int(getattr(self, "out_features", LARGE_VOCABULARY))


@cache
def _with_loss(layer: Any) -> type[nn.Module]:
    # A quantised Linear is an nn.Linear too, but its weight is no matrix: only the plain forward is taken over.
    return type(f"Loss{layer.__name__}", (LossHead, layer), {"linear_forward": layer.forward is nn.Linear.forward})


def linear_loss(hidden_nd: Tensor, weight_vd: Tensor, bias_v: Tensor | None, targets_n: Tensor) -> Tensor:
    """Sum of -log softmax(hidden @ weight.T + bias)[target], with its gradients taken in the forward pass."""
    kind = hidden_nd.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_nd.dtype
    with torch.autocast(kind, enabled=False):
        loss: Tensor = _LinearLoss.apply(
            hidden_nd, weight_vd, bias_v, targets_n, product_dtype(dtype, hidden_nd.device), torch.is_grad_enabled()
        )
    return loss


class _LinearLoss(torch.autograd.Function):
    """But for one factor a sum's gradients do not depend on what follows it: they are taken with the logits at hand.

    The weight's gradient is summed over chunks in float32, because a half would lose a little at every chunk; it is
    rounded once, after the factor, as that of an ordinary layer is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        bias_v: Tensor | None,
        targets_n: Tensor,
        dtype: torch.dtype,
        differentiate: bool,
    ) -> Tensor:
        for_hidden, for_weight, for_bias = (differentiate and needed for needed in ctx.needs_input_grad[:3])
        h_nd, w_vd = hidden_nd.to(dtype), weight_vd.to(dtype)
        grad_nd = torch.empty_like(h_nd) if for_hidden else None
        grad_vd = torch.zeros_like(w_vd, dtype=torch.float32) if for_weight else None
        grad_v = w_vd.new_zeros(len(w_vd), dtype=torch.float32) if for_bias else None
        loss = hidden_nd.new_zeros((), dtype=torch.float32)
        size = chunk_rows(len(w_vd), w_vd.device)
        for start in range(0, len(targets_n), size):
            part = slice(start, start + size)
            chunk_nd, target_n1 = h_nd[part], targets_n[part, None]
            logits_nv = F.linear(chunk_nd, w_vd, None if bias_v is None else bias_v.to(dtype))
            log_p_nv = torch.log_softmax(logits_nv, -1, dtype=torch.float32)
            del logits_nv
            target_log_p_n1 = log_p_nv.gather(1, target_n1)
            loss -= target_log_p_n1.sum()
            if not (for_hidden or for_weight or for_bias):
                continue
            slope_nv = log_p_nv.exp_().scatter_(1, target_n1, target_log_p_n1.exp() - 1).to(dtype)
            del log_p_nv
            if grad_nd is not None:
                torch.mm(slope_nv, w_vd, out=grad_nd[part])
            if grad_vd is not None:
                if dtype == torch.float32:
                    grad_vd.addmm_(slope_nv.T, chunk_nd)
                else:
                    grad_vd += slope_nv.T @ chunk_nd
            if grad_v is not None:
                grad_v += slope_nv.sum(0, dtype=torch.float32)
        # Neither inputs nor outputs; taken away by the one backward pass that there is, which multiplies them in place.
        ctx.gradients = (grad_nd, grad_vd, grad_v)
        ctx.dtypes = (hidden_nd.dtype, weight_vd.dtype, None if bias_v is None else bias_v.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> tuple[Tensor | None, ...]:
        pairs = list(zip(ctx.gradients, ctx.dtypes, strict=True))
        ctx.gradients = None
        # The factor stays in float32: in bf16 it would be off by up to 0.4 %, and with it every gradient of the step.
        scaled = [None if grad is None else grad.float().mul_(factors[0]).to(dtype) for grad, dtype in pairs]
        return (*scaled, None, None, None)


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Of so many positions the logits may exist at once."""
    return max(CHUNK_ELEMENTS * (1 if device.type == "cpu" else GPU_CHUNKS) // vocabulary, 1)


def _cross_entropy(logits_nv: Tensor, targets_n: Tensor) -> Tensor:
    return F.cross_entropy(logits_nv.float(), targets_n, reduction="sum")


def _checkpointed_loss(
    project: Project,
    hidden_nd: Tensor,
    targets_n: Tensor,
    vocabulary: int,
    loss: Callable[[Tensor, Tensor], Tensor] = _cross_entropy,
) -> Tensor:
    """A sum for any projection (an adapted or quantised layer): each chunk is computed again in the backward."""

    def chunk_loss(chunk_nd: Tensor, chunk_targets_n: Tensor) -> Tensor:
        return loss(project(chunk_nd), chunk_targets_n)

    size = chunk_rows(vocabulary, hidden_nd.device)
    # At least one chunk, though empty: every parameter must get a gradient, or ranks would wait for it.
    pieces = zip(hidden_nd.split(size), targets_n.split(size), strict=True)
    losses = [checkpoint(chunk_loss, *piece, use_reentrant=False) for piece in pieces]
    return torch.stack(losses).sum()


def _loss_of_logits(logits_btv: Tensor, targets_bt: Tensor) -> Tensor:
    """For models that still change the logits after the output layer."""
    logits_nv, targets_n = at_targets(logits_btv, targets_bt)
    return _checkpointed_loss(lambda chunk_nv: chunk_nv, logits_nv, targets_n, logits_btv.shape[-1])


def at_targets(values_btd: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
    """The values at positions that have a target, and the targets."""
    # Prompt tuning puts virtual positions in front, which predict nothing.
    values_btd = values_btd[:, -targets_bt.shape[1] :]
    learned_n = (targets_bt.flatten() != IGNORED).nonzero()[:, 0]
    return values_btd.flatten(0, 1).index_select(0, learned_n), targets_bt.flatten().index_select(0, learned_n)
