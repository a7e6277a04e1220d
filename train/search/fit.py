"""Names over- and underfitting from the curves of a run."""

from __future__ import annotations

from statistics import fmean

from train.report.run import Run

MARGIN = 0.01  # relative change of a loss that counts
RULE = (
    "Overfitting: the validation loss ends more than 1 % above its lowest value, while the training loss fell further. "
    "Underfitting: over the last third of the validations both losses fell by more than 1 %, and the validation loss "
    "is lowest at the end (only of trials that trained to their ends). At least three validations are needed; the "
    "training loss is the mean since the one before."
)


def fit_of(run: Run, to_its_end: bool) -> str:
    """overfitting, underfitting, or nothing. to_its_end: whether the run was not stopped early."""
    held_out = [(step, value) for step, value in run.curve("validation/loss").items() if step > 0]
    train = _between(run, [step for step, _ in held_out])
    if len(held_out) < 3 or any(value is None for value in train):
        return ""
    known = [value for value in train if value is not None]
    values = [value for _, value in held_out]
    best = values.index(min(values))
    if values[-1] > min(values) + MARGIN * abs(min(values)) and known[-1] < known[best]:
        return "overfitting"
    third = len(values) - 1 - max(1, len(values) // 3)
    falls = (before - after > MARGIN * abs(before) for before, after in
             ((values[third], values[-1]), (known[third], known[-1])))  # fmt: skip
    return "underfitting" if to_its_end and best == len(values) - 1 and all(falls) else ""


def _between(run: Run, steps: list[int]) -> list[float | None]:
    """The mean training loss up to each of these steps, since the one before."""
    curve = run.training_loss
    means: list[float | None] = []
    for start, end in zip([0, *steps], steps, strict=False):
        losses = [value for step, value in curve.items() if start < step <= end]
        means.append(fmean(losses) if losses else None)
    return means
