"""What a model reads at once, undisturbed by what stands beside it in a batch.

Shape suffix: t tokens of one document.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = -100  # the target of a token at which no token is predicted


@dataclass(frozen=True)
class Document:
    """ids_t: its tokens. targets_t: what each shall give: the number of a token, or IGNORED; or a class's number or a
    value, or NaN. second: where the second of two sentences begins, for models that want to know (0: nowhere).
    """

    ids_t: NDArray[np.int32]
    targets_t: NDArray[Any]
    second: int = 0

    @classmethod
    def to_predict(cls, ids_t: NDArray[np.int32], labels_t: NDArray[np.int32]) -> Document:
        """Each token shall give the label of the one after it."""
        targets_t = np.full(len(ids_t), IGNORED, np.int32)
        targets_t[:-1] = labels_t[1:]
        return cls(ids_t, targets_t)

    @property
    def learned(self) -> int:
        """How many of its tokens have a target."""
        return int(has_target(self.targets_t).sum())

    def without_targets(self) -> Document:
        """The same with nothing to learn."""
        return replace(self, targets_t=np.full_like(self.targets_t, nothing(self.targets_t)))


def nothing(targets: NDArray[Any]) -> float:
    """What stands where there is no target, among targets like these."""
    return np.nan if targets.dtype.kind == "f" else IGNORED


def has_target(targets: NDArray[Any]) -> NDArray[np.bool_]:
    """Where there is a target."""
    there: NDArray[np.bool_] = ~np.isnan(targets) if targets.dtype.kind == "f" else targets != IGNORED
    return there
