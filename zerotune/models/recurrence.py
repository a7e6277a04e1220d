"""Recurrent layers over rows of any layout: rows side by side, one position after another.

The tokens of a batch are reordered as in torch's PackedSequence: the first tokens of all rows, then all second tokens,
and so on, longest row first. A scan then takes as many sequential steps as the longest row has tokens, computes no
padding, and no row can see another.

Shape suffixes: b rows, t positions, n tokens of all rows in that order, r rows of a step, d width, g gates x width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from zerotune.models.precision import product_dtype

State = tuple[Tensor, ...]  # of one layer: [b, d] each
RECTANGLE = 64  # steps: see `_rectangles`


@dataclass(frozen=True)
class Steps:
    """The tokens of a batch in the order of a scan.

    order_n: their indices in the flattened batch. sizes: how many rows each step has; never rising.
    row_b: the rows of the batch, longest first. last_b: where in the order each of these ends; -1 for an empty row.
    """

    order_n: Tensor
    sizes: tuple[int, ...]
    row_b: Tensor
    last_b: Tensor

    @classmethod
    def of(cls, index_n: Tensor, lengths: Sequence[int]) -> Steps:
        """Steps of rows that follow each other in `index_n`, the indices of their tokens."""
        given_b = torch.tensor(lengths, dtype=torch.long)
        length_b, row_b = given_b.sort(descending=True, stable=True)
        if not max(lengths, default=0):
            return cls(index_n, (), row_b.to(index_n.device), torch.full_like(row_b, -1, device=index_n.device))
        start_b = (given_b.cumsum(0) - given_b)[row_b]
        position_t1 = torch.arange(int(length_b[0]))[:, None]
        is_token_tb = position_t1 < length_b
        size_t = is_token_tb.sum(1)
        begin_t = torch.cumsum(size_t, 0) - size_t
        last_b = torch.where(length_b > 0, begin_t[(length_b - 1).clamp(min=0)] + torch.arange(len(lengths)), -1)
        order_n = (start_b + position_t1)[is_token_tb].to(index_n.device)
        return cls(
            index_n[order_n], tuple(size_t.tolist()), row_b.to(index_n.device), last_b.to(index_n.device)
        )  # fmt: skip

    def placed(self, x_nd: Tensor, batch: Tensor) -> Tensor:
        """[b, t, d] in the layout of `batch` [b, t, ...]; zeros where it has no token."""
        rows, width = batch.shape[:2]
        return (
            x_nd.new_zeros(rows * width, x_nd.shape[-1])
            .index_copy(0, self.order_n, x_nd)
            .view(rows, width, x_nd.shape[-1])
        )

    def final(self, state_nd: Tensor, before_bd: Tensor) -> Tensor:
        """The state at the end of each row; an empty row keeps the one before."""
        if not self.sizes:
            return before_bd
        return torch.where(self.last_b[:, None] >= 0, state_nd[self.last_b], before_bd)


def windows(x_nd: Tensor, sizes: tuple[int, ...], steps: int) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """(tokens, sizes) of each `steps` steps. One split: the gradient of a slice has the length of the whole row."""
    parts = [sizes[first : first + steps] for first in range(0, len(sizes), steps)]
    return zip(x_nd.split([sum(part) for part in parts]), parts, strict=True)


class Transition(nn.Linear):
    """A matrix that a recurrence multiplies by at every step.

    It is called once with the unit matrix, and gives the transposed weight: adapters (LoRA), quantisation and sharding
    (ZeRO-3, FSDP) act on calls, so that they change it like any other layer.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, unit_dd: Tensor) -> Tensor:
        """The product of the unit matrix with the transposed weight, without multiplying."""
        return self.weight.T


class Recurrent(Transition):
    """The matrix that multiplies the state; it starts otherwise than that of the input."""


def matrix(transition: nn.Module, size: int, like: Tensor) -> Tensor:
    """The matrix [d, g] of a `Transition`, or of the adapter around it, in the dtype of `like`."""
    found: Tensor = transition(torch.eye(size, device=like.device))
    return found.to(like.dtype)


class RnnLayer(GradientCheckpointingLayer):
    """h_t = tanh(W x_t + b + U h_{t-1}), by hand: the input products of all steps are one matrix product."""

    states = 1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, width)
        self.recurrent = Recurrent(width, width)

    def forward(
        self, x_nd: Tensor, steps: Steps, state: State, bptt_tokens: int, keep_state: bool = True
    ) -> tuple[Tensor, State]:
        """The outputs, and the state at the end of each row; without `keep_state` it may be any.

        Gradients go back at most `bptt_tokens` steps.
        """
        input_nd: Tensor = self.input(x_nd)
        dtype = input_nd.dtype
        product_nd = input_nd.to(product_dtype(dtype, input_nd.device))
        u_dd = matrix(self.recurrent, product_nd.shape[-1], product_nd)
        h_nd: Tensor = _Scan.apply(product_nd, u_dd, state[0].to(product_nd.dtype), steps.sizes, bptt_tokens)
        h_nd = h_nd.to(dtype)
        return h_nd, (steps.final(h_nd, state[0]),)


class _Scan(torch.autograd.Function):
    """The recurrence with its gradients written out: one product a step forward, one backward, and the gradient of the
    recurrent matrix as a single product over all steps. The state before the first step gets no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, input_nd: Tensor, u_dd: Tensor, before_bd: Tensor, sizes: tuple[int, ...], bptt_tokens: int
    ) -> Tensor:
        h_nd = torch.empty_like(input_nd)
        previous_rd = before_bd
        for input_rd, h_rd in zip(input_nd.split(sizes), h_nd.split(sizes), strict=True):
            torch.addmm(input_rd, previous_rd[: len(h_rd)], u_dd, out=h_rd)
            previous_rd = h_rd.tanh_()
        ctx.save_for_backward(h_nd, u_dd, before_bd)
        ctx.sizes, ctx.bptt_tokens = sizes, bptt_tokens
        return h_nd

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        h_nd, u_dd, before_bd = ctx.saved_tensors
        sizes, number = ctx.sizes, len(ctx.sizes)
        ut_dd = u_dd.T.contiguous()
        slope_nd = torch.addcmul(h_nd.new_ones(()), h_nd, h_nd, value=-1)
        grad_nd = gradients[0].clone(memory_format=torch.contiguous_format)
        pieces = list(zip(grad_nd.split(sizes), slope_nd.split(sizes), strict=True))
        later_rd = grad_nd[:0]
        for step in reversed(range(number)):
            grad_rd, slope_rd = pieces[step]
            if len(later_rd):
                grad_rd[: len(later_rd)].addmm_(later_rd, ut_dd)
            grad_rd.mul_(slope_rd)
            later_rd = grad_rd if step % ctx.bptt_tokens else grad_nd[:0]
        grad_u_dd = _before(h_nd, before_bd, sizes).T @ grad_nd if ctx.needs_input_grad[1] else None
        return grad_nd, grad_u_dd, None, None, None


def _before(h_nd: Tensor, before_bd: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The state that each token of a scan finds."""
    if not sizes:
        return h_nd
    if sizes[0] == sizes[-1]:
        return torch.cat([before_bd[: sizes[0]], h_nd[: -sizes[0]]])
    found = [before_bd, *h_nd.split(sizes)[:-1]]
    return torch.cat([state_rd[:size] for state_rd, size in zip(found, sizes, strict=True)])


class LstmLayer(GradientCheckpointingLayer):
    """torch's LSTM, whose matrices are layers that adapters know; gates in its order: input, forget, cell, output."""

    states = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.input = Transition(width, 4 * width)
        self.recurrent = Recurrent(width, 4 * width)
        self.bias = nn.Parameter(torch.zeros(4 * width))

    def forward(
        self, x_nd: Tensor, steps: Steps, state: State, bptt_tokens: int, keep_state: bool = True
    ) -> tuple[Tensor, State]:
        """As of `RnnLayer`; the state is that of the output and that of the cell."""
        kind = x_nd.device.type
        asked = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_nd.dtype
        x_nd = x_nd.to(product_dtype(asked, x_nd.device))
        weights = [matrix(part, self.width, x_nd).T.contiguous() for part in (self.input, self.recurrent)]
        bias_g = self.bias.to(x_nd.dtype)
        weights += [bias_g, torch.zeros_like(bias_g)]
        h_bd, c_bd = (part.to(x_nd.dtype) for part in state)
        scan = _ragged if keep_state or x_nd.is_cuda else _rectangles
        outputs = []
        with torch.autocast(kind, enabled=False):
            for part_nd, sizes in windows(x_nd, steps.sizes, bptt_tokens):
                out_nd, (h_bd, c_bd) = scan(part_nd, sizes, (h_bd.detach(), c_bd.detach()), weights, self.training)
                outputs.append(out_nd)
        if not outputs:  # rows without tokens: every weight has a gradient all the same
            outputs.append(x_nd @ (weights[0] + weights[1])[: self.width].T + bias_g[: self.width])
        return torch.cat(outputs).to(asked), (h_bd.to(asked), c_bd.to(asked))


def _rectangles(
    x_nd: Tensor, sizes: tuple[int, ...], state: State, weights: list[Tensor], training: bool
) -> tuple[Tensor, State]:
    """As `_ragged`, 3 to 10 times as fast on a CPU, whose fused LSTM takes rows of one length only: rows are padded to
    the end of some steps. A row that has ended has no valid state.
    """
    outputs = []
    for part_nd, those in windows(x_nd, sizes, RECTANGLE):
        is_token_tr = torch.arange(those[0]) < torch.tensor(those)[:, None]
        place_n = is_token_tr.flatten().nonzero().squeeze(1)
        padded_nd = x_nd.new_zeros(is_token_tr.numel(), x_nd.shape[-1]).index_copy(0, place_n, part_nd)
        out_nd, state = _ragged(padded_nd, (those[0],) * len(those), state, weights, training)
        outputs.append(out_nd.index_select(0, place_n))
    return torch.cat(outputs), state


def _ragged(
    x_nd: Tensor, sizes: tuple[int, ...], state: State, weights: list[Tensor], training: bool
) -> tuple[Tensor, State]:
    """The outputs of a window of steps, and the state of all rows, each at its own end."""
    rows = sizes[0]
    before = tuple(part[None, :rows] for part in state)
    settings = (True, 1, 0.0, training, False)  # biases, layers, dropout, training, both directions
    if rows * len(sizes) == len(x_nd):
        out_trd, *after = torch.lstm(x_nd.unflatten(0, (-1, rows)), before, weights, *settings, False)
        out_nd = out_trd.flatten(0, 1)
    else:
        out_nd, *after = torch.lstm(x_nd, torch.tensor(sizes), before, weights, *settings)
    return out_nd, tuple(torch.cat([new[0], old[rows:]]) for new, old in zip(after, state, strict=True))
