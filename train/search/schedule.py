"""Who trains how far: rungs that halving and hyperband stop at, promotions, and stops by the median."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from train.search.space import SpaceConfig
from train.search.study import Record


@dataclass(frozen=True)
class Rungs:
    """Asynchronous successive halving (arXiv:1810.05934) with resumed runs: a trial stops at a rung, and one of
    `reduction` trials there is promoted to the next. Without halving, the only rung is the whole run.

    shares: of a run's steps at each rung, rising to 1. brackets: hyperband has one for each rung that trials may start
    at; halving has one.
    """

    shares: tuple[float, ...] = (1.0,)
    reduction: int = 1
    brackets: int = 1

    @classmethod
    def of(cls, config: SpaceConfig) -> Rungs:
        """The rungs of a space's pruner."""
        if config.pruner not in ("halving", "hyperband"):
            return cls()
        shares = tuple(float(config.reduction) ** -k for k in reversed(range(config.rungs)))
        return cls(shares, config.reduction, config.rungs if config.pruner == "hyperband" else 1)

    def first(self, number: int) -> int:
        """The rung that a trial stops at first, which is its bracket too.

        Brackets that stop early have more trials, as in hyperband: about equally many steps for each bracket.
        """
        last = len(self.shares) - 1
        weights = [self.reduction ** (last - k) / (last - k + 1) for k in range(self.brackets)]
        counts = [0] * self.brackets
        chosen = 0
        for _ in range(number + 1):
            chosen = min(range(self.brackets), key=lambda k: ((counts[k] + 1) / weights[k], k))
            counts[chosen] += 1
        return chosen

    def promotable(self, records: Sequence[Record], sign: int, all_drawn: bool) -> int | None:
        """The number of the trial to resume to its next rung, or None; that of the highest rung first.

        all_drawn: no new trial follows: once all have arrived at a rung, the best there goes on in any case.
        """
        found = [
            candidate
            for bracket in range(self.brackets)
            for candidate in self._candidates([r for r in records if self.first(r.number) == bracket], sign, all_drawn)
        ]
        return max(found)[1] if found else None

    def _candidates(self, records: Sequence[Record], sign: int, closed: bool) -> Iterator[tuple[int, int]]:
        """(rung, number) of a trial to promote from each rung of one bracket that has one."""
        for rung in range(len(self.shares) - 1):
            here = [r for r in records if _value_at(r, rung) is not None]
            closed = closed and not any(r.state == "running" and len(r.rungs) <= rung for r in records)
            here.sort(key=lambda r: (sign * (_value_at(r, rung) or 0.0), r.number))
            promoted = max(len(here) // self.reduction, int(closed))
            waiting = [r.number for r in here[:promoted] if r.state == "paused" and r.target == rung]
            if waiting:
                yield rung, waiting[0]
                closed = False


def _value_at(record: Record, rung: int) -> float | None:
    """The best value of a trial at a rung that it has reached; one that trained to its end has reached all."""
    if len(record.rungs) > rung:
        return record.rungs[rung][1]
    return record.value if record.state == "complete" else None


def below_median(
    mine: Sequence[tuple[int, float]], others: Sequence[Mapping[int, float]], sign: int, startup: int
) -> str:
    """Why a trial is stopped at its last validation, or nothing: its best value so far is worse than the median of
    what the finished trials had at the same step, of which there are at least `startup`.

    others: step -> value of each finished trial.
    """
    step = mine[-1][0]
    best = min(sign * value for _, value in mine)
    at_step = [sign * values[step] for values in others if step in values]
    if len(at_step) < startup:
        return ""
    median = statistics.median(at_step)
    if best <= median:
        return ""
    others_have = f"the median of {len(at_step)} trials, {sign * median:.4g}"
    return f"at step {step} its best, {sign * best:.4g}, is worse than {others_have}"
