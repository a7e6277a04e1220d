"""Continues prompts with numbers as values, by the model in training."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from torch import nn

from train.data.document import IGNORED, Document
from train.data.micro_batches import Shape, joined
from train.protocols import Ranks
from zerotune.data.number_tokens import is_number, number_id, rounded, value_of
from zerotune.models import numeric


def continue_with_numbers(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    number_token: int,
    stop_ids: Collection[int],
    max_new_tokens: int,
    shape: Shape,
    ranks: Ranks,
) -> list[list[int]]:
    """Greedy continuations without their stop tokens. Numbers have ids of their own (`number_id`).

    A collective: all ranks continue all prompts, and read them again for each token, so that no sharding matters.
    """
    rows, running = [list(prompt) for prompt in prompts], set(range(len(prompts)))
    for _ in range(max_new_tokens):
        inputs, targets_bt = joined([_document(row, number_token) for row in rows], shape)
        inputs = {name: x.to(ranks.device) if hasattr(x, "to") else x for name, x in inputs.items()}
        tokens, values = numeric.next_tokens(model, inputs, targets_bt.to(ranks.device))
        for b in sorted(running):
            following = tokens[b]
            if following == number_token:
                following = number_id(rounded(values[b], map(value_of, filter(is_number, reversed(rows[b])))))
            if following in stop_ids:
                running.remove(b)
            else:
                rows[b].append(following)
        if not ranks.sum([float(len(running))])[0]:
            break
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def _document(ids: Sequence[int], number_token: int) -> Document:
    """A row whose last position alone has a target."""
    targets_t = np.full(len(ids), IGNORED, np.int32)
    targets_t[-1] = 0
    tokens_t = np.array([number_token if is_number(token) else token for token in ids], np.int32)
    values_t = np.array([value_of(token) if is_number(token) else 0.0 for token in ids])
    return Document(tokens_t, targets_t, values_t=values_t)
