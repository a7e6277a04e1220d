"""Speed of the models from scratch, in tokens/s, side by side on this machine's CPU with one thread.

    python benchmarks/scratch_throughput.py [--repeats 5] [--width 256]

1. The layers: the hand-written RNN against torch.nn.RNN, the LSTM against torch.nn.LSTM, forward and backward.
2. The families: an update as `train.engine.loop` makes one (packed rows, the loss in the output layer, fused AdamW),
   against a plain PyTorch loop over the same rows, padded, with torch's own layers and cross-entropy (transformer: the
   same transformers model on padded rows). Both start from the same weights, and must have the same losses to 1e-4.

Runs alternate; the best of each side counts. The last line is `ratio=... target=...`; the exit code is 1 below it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from zerotune.models import attention
from zerotune.models.loss_head import token_loss
from zerotune.models.recurrence import LstmLayer, RnnLayer, Steps
from zerotune.models.recurrent import LstmConfig, LstmForCausalLM, RnnConfig, RnnForCausalLM

WORDS, ROWS, STEPS = 10_000, 32, 3
SHORTEST, LONGEST = 16, 128
TARGET, SAME_LOSS = 1.0, 1e-4
LAYERS = {"rnn": (RnnLayer, nn.RNN), "lstm": (LstmLayer, nn.LSTM)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(1)
    ratios = {}
    for name in LAYERS:
        ratios[f"layer {name}"] = compared(f"layer {name}", given.repeats, *layers(name, given.width))
    for name in ("rnn", "lstm", "transformer"):
        ratios[name] = compared(name, given.repeats, *families(name, given.width))
    required = {name: ratio for name, ratio in ratios.items() if name != "layer lstm"}  # the same code as torch's
    worst = min(required.values())
    print(f"ratio={worst:.2f} target={TARGET}")
    return int(worst < TARGET)


def compared(name: str, repeats: int, tokens: int, ours: Callable[[], Any], theirs: Callable[[], Any]) -> float:
    """How many times as fast ours is."""
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        for side, work in enumerate((ours, theirs)):
            start = time.perf_counter()
            work()
            best[side] = min(best[side], time.perf_counter() - start)
    ratio = best[1] / best[0]
    print(f"{name}: {tokens / best[0]:,.0f} tokens/s, torch {tokens / best[1]:,.0f}, x{ratio:.2f}", flush=True)
    return ratio


def layers(name: str, width: int) -> tuple[int, Callable[[], Any], Callable[[], Any]]:
    """(tokens, ours, torch's) of one layer on rows of one length."""
    ours, theirs = (kind(*sizes) for kind, sizes in zip(LAYERS[name], ((width,), (width, width)), strict=True))
    x_nd = torch.randn(ROWS * LONGEST, width, requires_grad=True)
    steps = Steps.of(torch.arange(len(x_nd)), [LONGEST] * ROWS)
    state = tuple(torch.zeros(ROWS, width) for _ in range(ours.states))
    return (
        len(x_nd),
        lambda: ours(x_nd, steps, state, LONGEST)[0].sum().backward(),
        lambda: theirs(x_nd.unflatten(0, (LONGEST, ROWS)))[0].sum().backward(),
    )


class Plain(nn.Module):
    """What a tutorial writes: torch's layers over padded rows, tied embeddings."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.layers = {"rnn": nn.RNN, "lstm": nn.LSTM}[name](width, width, num_layers=2, batch_first=True)

    def forward(self, ids_bt: Tensor) -> Tensor:
        x_btd = self.embed(ids_bt) * math.sqrt(self.embed.embedding_dim)
        return F.linear(self.layers(x_btd)[0], self.embed.weight)

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


def families(name: str, width: int) -> tuple[int, Callable[[], Any], Callable[[], Any]]:
    """(tokens, ours, a plain loop) of STEPS updates from the same weights on the same rows."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (STEPS, ROWS), generator=random).tolist()
    steps = [[torch.randint(0, WORDS, (n,), generator=random) for n in row] for row in lengths]
    torch.manual_seed(0)
    model, plain = models(name, width)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses: dict[str, list[float]] = {}

    def ours() -> None:
        model.load_state_dict(before)
        losses["ours"] = updates(
            model, [packed(rows) for rows in steps], lambda model, batch: token_loss(model, *batch)
        )

    def theirs() -> None:
        plain.take(model_of(before)) if isinstance(plain, Plain) else plain.load_state_dict(before)
        losses["theirs"] = updates(plain, [padded(rows) for rows in steps], plain_loss)

    def model_of(weights: dict[str, Tensor]) -> Any:
        model.load_state_dict(weights)
        return model

    ours()
    theirs()
    apart = max(abs(one - other) for one, other in zip(losses["ours"], losses["theirs"], strict=True))
    assert apart <= SAME_LOSS, f"{name}: the losses are {apart} apart"
    return sum(map(sum, lengths)), ours, theirs


def models(name: str, width: int) -> tuple[Any, Any]:
    sizes: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": width, "num_hidden_layers": 2}
    if name != "transformer":
        config, kind = {"rnn": (RnnConfig, RnnForCausalLM), "lstm": (LstmConfig, LstmForCausalLM)}[name]
        return kind(config(**sizes)), Plain(name, width)
    attention.register()
    llama = LlamaConfig(
        **sizes, num_attention_heads=width // 64, intermediate_size=3 * width, tie_word_embeddings=True
    )  # fmt: skip
    ours = LlamaForCausalLM._from_config(llama, attn_implementation=attention.NAME)
    return ours, LlamaForCausalLM._from_config(llama, attn_implementation="sdpa")


def updates(model: nn.Module, batches: Sequence[Any], loss_of: Callable[[Any, Any], Tensor]) -> list[float]:
    """The mean loss of each update."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    found = []
    for *batch, count in batches:
        loss = loss_of(model, batch) / count
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss.detach()))
    return found


def packed(rows: Sequence[Tensor]) -> tuple[dict[str, Any], Tensor, int]:
    """(inputs, targets, number of targets)"""
    lengths = [len(row) for row in rows]
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    inputs = {
        "input_ids": torch.cat(list(rows))[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "use_cache": False,
    }
    targets = torch.cat([torch.cat([row[1:], torch.tensor([-100])]) for row in rows])[None]
    return inputs, targets, sum(lengths) - len(rows)


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, int]:
    ids_bt = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    targets_bt = nn.utils.rnn.pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=-100)
    return ids_bt, F.pad(targets_bt, (0, 1), value=-100), sum(map(len, rows)) - len(rows)


def plain_loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    ids_bt, targets_bt = batch
    output = model(ids_bt)
    logits_btv = output if isinstance(output, Tensor) else output.logits
    return F.cross_entropy(logits_btv.flatten(0, 1), targets_bt.flatten(), ignore_index=-100, reduction="sum")


if __name__ == "__main__":
    sys.exit(main())
