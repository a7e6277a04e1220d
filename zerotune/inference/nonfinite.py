"""Rejects NaN and infinity in a model's outputs, which would otherwise be scored like any number."""

from __future__ import annotations

from zerotune.common.errors import UserError


def require_finite(is_finite: bool) -> None:
    """Raise UserError if a model's outputs are not finite."""
    if not is_finite:
        raise UserError(
            "the model's outputs are not finite: its weights are damaged, or the precision is too low; "
            "try --precision fp32"
        )
