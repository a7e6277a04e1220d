"""How alike two answers are: by their characters in order, after the normalisation of exact match."""

from __future__ import annotations

from difflib import SequenceMatcher

from eval.metrics.exact_match import normalise

ALIKE = 0.7  # above it an answer counts as partly right


def similarity(prediction: str, reference: str) -> float:
    """Ratcliff-Obershelp similarity in [0, 1]: 2 x matching characters / all characters."""
    return SequenceMatcher(None, normalise(prediction), normalise(reference), autojunk=False).ratio()
