"""The check that a model gives numbers: broken weights, and too low a precision, would be scored like any others."""

from __future__ import annotations

from zerotune.common.errors import UserError


def require_finite(is_finite: bool) -> None:
    """Raises UserError where what a model gives is not finite."""
    if not is_finite:
        raise UserError(
            "the model gives probabilities that are not finite: its weights are broken, or the precision is too low; "
            "try fp32 (--precision fp32)"
        )
