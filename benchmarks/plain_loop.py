"""The loop of a tutorial: torch's recurrent layers over padded rows, cross-entropy, AdamW. `scratch_throughput` and
tests compare with it.

Shape suffixes: b rows, t positions, d width, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zerotune.models.recurrence import LstmLayer

SAME_LOSS = 1e-4


class Plain(nn.Module):
    """Torch's layers over padded rows, tied embeddings. bptt_tokens: gradients go back within windows of so many."""

    def __init__(self, name: str, words: int, width: int, bptt_tokens: int | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = {"rnn": nn.RNN, "lstm": nn.LSTM}[name](width, width, num_layers=2, batch_first=True)
        self.bptt_tokens = bptt_tokens

    def forward(self, ids_bt: Tensor) -> Tensor:
        x_btd = self.embed(ids_bt) * math.sqrt(self.embed.embedding_dim)
        outputs, state = [], None
        for window_btd in x_btd.split(self.bptt_tokens or x_btd.shape[1], 1):
            output_btd, state = self.layers(window_btd, state)
            state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
            outputs.append(output_btd)
        return F.linear(torch.cat(outputs, 1), self.embed.weight)

    def take(self, model: Any) -> None:
        """The weights of our model."""
        state = {"embed.weight": model.model.embed_tokens.weight}
        for number, layer in enumerate(model.model.layers):
            bias = layer.bias if isinstance(layer, LstmLayer) else layer.input.bias
            state[f"layers.weight_ih_l{number}"] = layer.input.weight
            state[f"layers.weight_hh_l{number}"] = layer.recurrent.weight
            state[f"layers.bias_ih_l{number}"], state[f"layers.bias_hh_l{number}"] = bias, torch.zeros_like(bias)
        self.load_state_dict(state)
        for number in range(len(model.model.layers)):  # one bias is enough
            getattr(self.layers, f"bias_hh_l{number}").requires_grad_(False)


def updates(
    model: nn.Module, batches: Sequence[Any], loss_of: Callable[[Any, Any], Tensor], learning_rate: float = 1e-3
) -> list[float]:
    """The mean loss of each update."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, fused=True)
    found = []
    for *batch, count in batches:
        loss = loss_of(model, batch) / count
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, int]:
    """(ids, targets, number of targets)"""
    ids_bt = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    targets_bt = nn.utils.rnn.pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=-100)
    return ids_bt, F.pad(targets_bt, (0, 1), value=-100), sum(map(len, rows)) - len(rows)


def plain_loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """The sum over all targets of a padded batch."""
    ids_bt, targets_bt = batch
    output = model(ids_bt)
    logits_btv = output if isinstance(output, Tensor) else output.logits
    return F.cross_entropy(logits_btv.flatten(0, 1), targets_bt.flatten(), ignore_index=-100, reduction="sum")
