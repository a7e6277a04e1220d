"""How alike two answers are: by their characters in order, after the normalisation of exact match."""

from __future__ import annotations

from difflib import SequenceMatcher

from eval.metrics.exact_match import normalise

ALIKE = 0.7  # above it an answer counts as partly right


def similarity(prediction: str, reference: str) -> float:
    """Ratcliff-Obershelp similarity in [0, 1]: 2 x matching characters / all characters."""
    return SequenceMatcher(None, normalise(prediction), normalise(reference), autojunk=False).ratio()


def partial_match(prediction: str, reference: str) -> float:
    """1.0 where the similarity is above 0.7, else 0.0."""
    return float(similarity(prediction, reference) > ALIKE)
