"""Cauchy distributions of scores and values: probabilities and likelihoods that neither overflow nor cancel.

A linear map W of independent Cauchy variables with locations l and scales s is Cauchy(W l, |W| s). That gives a score
for each token and a value without sampling (docs/decisions/0026).

Shape suffixes: n positions, d width, v vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zerotune.models.loss_head import chunk_rows
from zerotune.models.precision import product_dtype

SCALE_FLOOR = 1e-6  # added to the scale of each score and value, in their units
LOG_PI = math.log(math.pi)


def log_probability(location: Tensor, scale: Tensor, threshold: float) -> Tensor:
    """log P(S > threshold) of S ~ Cauchy(location, scale), exact to rounding for every probability."""
    return _log_share(threshold - location, scale)


def _log_share(beyond: Tensor, scale: Tensor) -> Tensor:
    """log(atan2(scale, beyond) / pi): 1/2 - atan(beyond / scale) / pi without its cancellation in either tail."""
    is_small = beyond >= 0
    small = torch.atan2(scale, torch.where(is_small, beyond, -beyond)) / math.pi
    return torch.where(is_small, small.log(), torch.log1p(-small))


def negative_log_density(value: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    """-log of the Cauchy density. No square is taken: finite in float64 for |value| up to 1e300."""
    return LOG_PI + 2 * torch.hypot(scale, value - location).log() - scale.log()


def standard_quantile(share: float) -> float:
    """The quantile of the distribution with location 0 and scale 1."""
    return math.tan(math.pi * (share - 0.5))


def one_vs_rest_loss(
    location_nd: Tensor, scale_nd: Tensor, weight_vd: Tensor, bias_v: Tensor | None, targets_n: Tensor, threshold: float
) -> Tensor:
    """Sum over positions and tokens of the binary cross-entropy of "this token comes next"; a float32 scalar.

    Scores are Cauchy(location @ weight.T + bias, scale @ |weight|.T + SCALE_FLOOR), and the probability of a token is
    that its score exceeds the threshold. As `loss_head.linear_loss`, it works in chunks of positions and takes the
    gradients in the forward pass.
    """
    kind = location_nd.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else location_nd.dtype
    dtype = dtype if dtype == torch.float64 else product_dtype(dtype, location_nd.device)
    with torch.autocast(kind, enabled=False):
        loss: Tensor = _OneVsRest.apply(
            location_nd, scale_nd, weight_vd, bias_v, targets_n, threshold, dtype, torch.is_grad_enabled()
        )
    return loss


def scales(scale_nd: Tensor, weight_vd: Tensor) -> Tensor:
    """[n, v]: the scale of each score, at least in float32."""
    scale_nv = F.linear(scale_nd.to(weight_vd.dtype), weight_vd.abs())
    return scale_nv.to(torch.promote_types(scale_nv.dtype, torch.float32)) + SCALE_FLOOR


class _OneVsRest(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        location_nd: Tensor,
        scale_nd: Tensor,
        weight_vd: Tensor,
        bias_v: Tensor | None,
        targets_n: Tensor,
        threshold: float,
        dtype: torch.dtype,
        differentiate: bool,
    ) -> Tensor:
        inputs = (location_nd, scale_nd, weight_vd, bias_v)
        needed = [differentiate and need for need in ctx.needs_input_grad[:4]]
        exact = torch.promote_types(dtype, torch.float32)
        l_nd, s_nd, w_vd = location_nd.to(dtype), scale_nd.to(dtype), weight_vd.to(dtype)
        b_v = None if bias_v is None else bias_v.to(dtype)
        grads = [
            torch.zeros_like(x, dtype=exact) if need and x is not None else None
            for x, need in zip(inputs, needed, strict=True)
        ]
        loss = location_nd.new_zeros((), dtype=exact)
        size = chunk_rows(2 * len(w_vd), w_vd.device)  # two numbers for each token
        for start in range(0, len(targets_n), size):
            part = slice(start, start + size)
            beyond_nv = F.linear(l_nd[part], w_vd, b_v).to(exact) - threshold
            scale_nv = scales(s_nd[part], w_vd).to(exact)
            chunk, slope_nv, scale_slope_nv = _binary(beyond_nv, scale_nv, targets_n[part, None], any(needed))
            loss += chunk
            if any(needed):
                _add_gradients(grads, part, l_nd, s_nd, w_vd, slope_nv.to(dtype), scale_slope_nv.to(dtype))
        ctx.gradients, ctx.dtypes = grads, [None if x is None else x.dtype for x in inputs]
        return loss

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> tuple[Tensor | None, ...]:
        pairs = list(zip(ctx.gradients, ctx.dtypes, strict=True))
        ctx.gradients = None
        return (*(None if g is None else g.mul_(factors[0]).to(dtype) for g, dtype in pairs), None, None, None, None)


def _binary(beyond_nv: Tensor, scale_nv: Tensor, target_n1: Tensor, slopes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(summed loss, its derivatives by location and by scale); overwrites its inputs.

    -log P of the target and -log(1 - P) of the others: with the location on the other side of the threshold, 1 - P of
    a token is P of its mirror image, so that the target is mirrored and all tokens are treated alike.
    """
    sign_nv = torch.ones_like(beyond_nv).scatter_(1, target_n1, -1.0)
    beyond_nv *= sign_nv
    loss = -_log_share(beyond_nv, scale_nv).sum()
    if not slopes:
        return loss, beyond_nv, scale_nv
    weight_nv = torch.atan2(scale_nv, beyond_nv).mul_(beyond_nv.square() + scale_nv.square()).reciprocal_()
    return loss, scale_nv.mul_(weight_nv).mul_(sign_nv), beyond_nv.mul_(weight_nv).neg_()


def _add_gradients(
    grads: list[Tensor | None],
    part: slice,
    l_nd: Tensor,
    s_nd: Tensor,
    w_vd: Tensor,
    slope_nv: Tensor,
    scale_slope_nv: Tensor,
) -> None:
    location_grad, scale_grad, weight_grad, bias_grad = grads
    if location_grad is not None:
        location_grad[part] = slope_nv @ w_vd
    if scale_grad is not None:
        scale_grad[part] = scale_slope_nv @ w_vd.abs()
    if weight_grad is not None:
        weight_grad += slope_nv.T @ l_nd[part]
        weight_grad += (scale_slope_nv.T @ s_nd[part]).mul_(w_vd.sign())
    if bias_grad is not None:
        bias_grad += slope_nv.sum(0, dtype=bias_grad.dtype)
