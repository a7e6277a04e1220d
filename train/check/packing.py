"""How well rows fill micro-batches of several sizes, packed and padded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from train.check.findings import Packing
from train.check.load import Loaded
from train.data.micro_batches import Shape, epoch_steps, micro_batches, padding_share
from train.data.token_dataset import Encoded

SHOWN_STEPS = 20
SHORTEST = 128


def packing(loaded: Loaded) -> list[Packing]:
    """For powers of two up to the recipe's tokens_per_micro_batch, and that itself; for one rank.

    The steps are those of the first epoch, at most SHOWN_STEPS; each has tokens_per_step tokens.
    """
    config, batch = loaded.config, loaded.config.batch
    rows = Encoded([part for source in loaded.of(True) for part in source.parts])
    if not len(rows):
        return []
    weights = [source.weight for source in config.data.train]
    longest, found = int(rows.lengths_n.max()), []
    for length in candidates(batch.tokens_per_micro_batch):
        shape = Shape(True, max(batch.tokens_per_step, length), length, longest, batch.shuffle, 0)
        steps = epoch_steps(rows, weights, shape, config.run.seed, 0)[:SHOWN_STEPS]
        lengths_n = np.minimum(rows.lengths_n, length)
        packs = sum(len(micro_batches(step_n, lengths_n, shape, 1)) for step_n in steps)
        tokens = sum(int(lengths_n[step_n].sum()) for step_n in steps)
        padded = replace(shape, packed=False)
        padded_steps = epoch_steps(rows, weights, padded, config.run.seed, 0)[:SHOWN_STEPS]
        found.append(
            Packing(
                length=length,
                fill=tokens / max(packs * length, 1),
                padding=padding_share(lengths_n, padded_steps, padded, 1),
                longer=float((rows.lengths_n > length).mean()),
            )
        )
    return found


def candidates(budget: int) -> list[int]:
    """Powers of two below the budget, and the budget."""
    return [*(size for k in range(7, 24) if SHORTEST <= (size := 2**k) < budget), budget][-6:]
