"""Greedy generation by the model in training, with prompts split over the ranks.

Shape suffixes: b prompts of a batch, t positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from train.protocols import Ranks
from zerotune.inference.reasoning import without_partial_character


def inner(model: nn.Module) -> nn.Module:
    """The model inside a DDP or DeepSpeed wrapper."""
    module = getattr(model, "module", model)
    return module if isinstance(module, nn.Module) else model


@torch.no_grad()
def continue_prompts(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ranks: Ranks,
    share: bool = True,
    batch_size: int = 16,
) -> dict[int, str]:
    """Prompt index -> continuation, for this rank's part of the prompts or (share=False) for all of them.

    A collective: every rank generates equally often, as sharded weights require.
    """
    first, stride = (ranks.index, ranks.count) if share else (0, 1)
    mine = sorted(range(first, len(prompts), stride), key=lambda i: -len(prompts[i]))
    rounds = -(-max(-(-len(prompts) // stride), 1) // batch_size)
    answers: dict[int, str] = {}
    generator: Any = inner(model)
    training = generator.training
    generator.eval()
    for start in range(0, rounds * batch_size, batch_size):
        batch = mine[start : start + batch_size]
        rows = [list(prompts[i]) for i in batch] or [list(prompts[0])]
        new_bt = _generate(generator, tokenizer, rows, max_new_tokens, ranks)
        answers |= {
            i: without_partial_character(tokenizer.decode(new_bt[b], skip_special_tokens=True))
            for b, i in enumerate(batch)
        }
    generator.train(training)
    return answers


def _generate(
    generator: Any, tokenizer: Any, rows: list[list[int]], max_new_tokens: int, ranks: Ranks
) -> list[list[int]]:
    """New tokens of each row; prompts padded on the left so that all continue from the same column."""
    width = max(len(row) for row in rows)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids_bt = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=ranks.device)
    mask_bt = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=ranks.device)
    out_bt = generator.generate(
        input_ids=ids_bt,
        attention_mask=mask_bt,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        repetition_penalty=1.0,  # as in `eval`, instead of the checkpoint's own generation settings
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=pad,
        synced_gpus=ranks.count > 1,
    )
    return [row[width:] for row in out_bt.tolist()]
