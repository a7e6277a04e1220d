"""The rows of `<NUM>` in the embeddings and the output layer of a pretrained model, which has none.

They are the token's first weights, and the last ones where the matrices are frozen: adapters need not train them.

Shape suffixes: v vocabulary, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BUFFER = "rows"  # of the module `numeric`, where the matrices are frozen; [2, d], for embeddings and output layer
BEYOND = 1.5


def matrices(model: Any) -> tuple[Tensor, Tensor]:
    """Embeddings and output layer, which may be the same."""
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


@torch.no_grad()
def new_row(weight_vd: Tensor, digits: Sequence[int]) -> Tensor:
    """What the digits have in common, farther from the mean row than they are: so a number is expected where the model
    expects digits, and more than each of them.
    """
    mean_d = weight_vd.mean(0, dtype=torch.float32)
    row_d = mean_d + BEYOND * (weight_vd[list(digits)].mean(0, dtype=torch.float32) - mean_d)
    return row_d.to(weight_vd.dtype).float()


@torch.no_grad()
def with_row(weight_vd: Tensor, token_id: int, row_d: Tensor) -> Tensor:
    """The matrix with a token's row, which may be the first behind its last."""
    extended_vd = torch.cat([weight_vd, weight_vd.new_zeros(max(token_id + 1 - len(weight_vd), 0), len(row_d))])
    extended_vd[token_id] = row_d.to(weight_vd.dtype)
    return extended_vd


@torch.no_grad()
def set_rows(model: Any, token_id: int, rows_2d: Tensor) -> None:
    """Write the rows into the model's matrices."""
    for weight_vd, row_d in zip(matrices(model), rows_2d, strict=True):
        weight_vd[token_id] = row_d.to(weight_vd)
