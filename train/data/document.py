"""A document: tokens that a model reads together, independent of other documents in a batch.

Shape suffix: t tokens of one document.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = -100  # the target of a token that has none


@dataclass(frozen=True)
class Document:
    """ids_t: tokens. targets_t: target of each: a token id, or IGNORED; or a class number or value, or NaN.
    second: where the second of two sentences begins, for models with token types (0: there is none).
    values_t: the value of each token that stands for a number, 0.0 for others; None if numbers are ordinary text.
    """

    ids_t: NDArray[np.int32]
    targets_t: NDArray[Any]
    second: int = 0
    values_t: NDArray[np.float64] | None = None

    @classmethod
    def to_predict(
        cls, ids_t: NDArray[np.int32], labels_t: NDArray[np.int32], values_t: NDArray[np.float64] | None = None
    ) -> Document:
        """A document in which the target of each token is the label of the next one."""
        targets_t = np.full(len(ids_t), IGNORED, np.int32)
        targets_t[:-1] = labels_t[1:]
        return cls(ids_t, targets_t, values_t=values_t)

    @property
    def learned(self) -> int:
        """The number of tokens with a target."""
        return int((~np.isnan(self.targets_t) if self.targets_t.dtype.kind == "f" else self.targets_t != IGNORED).sum())

    def without_targets(self) -> Document:
        return replace(self, targets_t=np.full_like(self.targets_t, nothing(self.targets_t)))


def nothing(targets: NDArray[Any]) -> float:
    """The value that means "no target" in an array of this dtype."""
    return np.nan if targets.dtype.kind == "f" else IGNORED
