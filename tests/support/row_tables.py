"""Tokenised rows held in memory, for tests of steps and batches."""

from __future__ import annotations

import numpy as np

from train.data.document import Document
from train.data.micro_batches import Shape


class Table:
    """Rows held in memory; row i starts with token i so that a test can find it again."""

    def __init__(self, lengths, sources=None):
        self.lengths_n = np.asarray(lengths, np.int32)
        self.learned_n = np.maximum(self.lengths_n - 1, 0)
        self.sources_n = np.asarray(sources if sources is not None else [0] * len(lengths), np.int16)

    def __len__(self):
        return len(self.lengths_n)

    def tokens(self, index):
        ids = np.full(int(self.lengths_n[index]), 7, np.int32)
        ids[0] = 1000 + index
        return ids, ids.copy()

    def documents(self, index):
        return [Document.to_predict(*self.tokens(index))]

    def row_id(self, index):
        return f"rows.jsonl:{index + 1}"


def shape(packed=True, step=400, micro=200):
    return Shape(
        packed=packed, tokens_per_step=step, tokens_per_micro_batch=micro, longest_row=190, shuffle=True, pad_token_id=0
    )


def table(rows=200, seed=0, longest=190):
    lengths = np.random.default_rng(seed).lognormal(3.3, 0.8, rows).astype(int).clip(4, longest)
    return Table(lengths)


def row_ids(batches):
    """The rows of one step, in order."""
    return [row for batch in batches for row in batch.row_ids]
