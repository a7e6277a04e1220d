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
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plain_loop import SAME_LOSS, Plain, padded, plain_loss, updates

from zerotune.models import attention
from zerotune.models.loss_head import token_loss
from zerotune.models.recurrence import LstmLayer, RnnLayer, Steps
from zerotune.models.recurrent import LstmConfig, LstmForCausalLM, RnnConfig, RnnForCausalLM

WORDS, ROWS, STEPS = 10_000, 32, 3
SHORTEST, LONGEST = 16, 128
TARGET = 1.0
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
        return kind(config(**sizes)), Plain(name, WORDS, width)
    attention.register()
    llama = LlamaConfig(
        **sizes, num_attention_heads=width // 64, intermediate_size=3 * width, tie_word_embeddings=True
    )  # fmt: skip
    ours = LlamaForCausalLM._from_config(llama, attn_implementation=attention.NAME)
    return ours, LlamaForCausalLM._from_config(llama, attn_implementation="sdpa")


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


if __name__ == "__main__":
    sys.exit(main())
