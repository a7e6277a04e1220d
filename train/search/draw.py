"""Draws the values of a trial. They depend on the seed, the trial's number and the trials before it, not on the process
that draws: a search that was killed draws the same again.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from train.search.space import Label, Parameter, Space
from train.search.study import Record

ATTEMPTS = 10  # draws that the sampler has to find a new point


class Drawn(NamedTuple):
    """The values of a trial. repeated: the trial that the first draw was again; then it was drawn anew."""

    values: dict[str, Label]
    repeated: int | None = None


def draw(space: Space, number: int, earlier: Sequence[Record], sign: int) -> Drawn:
    """What trial `number` < `space.trials` is: a point that no earlier trial has.

    earlier: all trials before it. sign: 1 if lower is better, else -1.
    """
    if space.config.method == "grid":
        return Drawn(space.grid_point(number))
    seen = [record.values for record in earlier]
    found = first = _sampled(space, number, earlier, sign)
    for attempt in range(1, ATTEMPTS):
        if found not in seen:
            break
        found = _sampled(space, number, earlier, sign, f":{attempt}")
    dice = random.Random(_seed(space, number))  # noqa: S311 (no secret)
    if found in seen and space.points is None:  # all values of few digits are used up
        found = _sampled(space, number, earlier, sign, exact=True)
    while found in seen and space.points is not None:
        found = {p.name: _short(p, p.at(dice.randrange(p.count or 1))) for p in space.parameters}
    return Drawn(found, earlier[seen.index(first)].number if first in seen else None)


def _sampled(
    space: Space, number: int, earlier: Sequence[Record], sign: int, attempt: str = "", exact: bool = False
) -> dict[str, Label]:
    """What Optuna's sampler draws. exact: with all digits."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed, startup = _seed(space, number, attempt), space.config.startup_trials
    if space.config.method == "random" or number < startup:
        sampler: Any = optuna.samplers.RandomSampler(seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    study = optuna.create_study(direction="minimize" if sign > 0 else "maximize", sampler=sampler)
    made = distributions(space)
    study.add_trials([_frozen(record, made) for record in earlier])
    params = study.ask(made).params
    return {p.name: params[p.name] if exact else _short(p, params[p.name]) for p in space.parameters}


def _seed(space: Space, number: int, attempt: str = "") -> int:
    return int.from_bytes(hashlib.sha256(f"{space.config.seed}:{number}{attempt}".encode()).digest()[:4])


def distributions(space: Space) -> dict[str, Any]:
    """Optuna's distribution of each parameter."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for parameter in space.parameters:
        if parameter.choices or space.config.method == "grid":
            found[parameter.name] = CategoricalDistribution(parameter.points)
        elif parameter.whole:
            low, high = int(parameter.low), int(parameter.high)
            found[parameter.name] = IntDistribution(low, high, log=parameter.log, step=int(parameter.step or 1))
        else:
            found[parameter.name] = FloatDistribution(
                parameter.low, parameter.high, log=parameter.log, step=parameter.step
            )
    return found


def _short(parameter: Parameter, value: Any) -> Label:
    """Four digits of a number are enough for a recipe; of a range with steps all that the steps need."""
    if not isinstance(value, float) or parameter.choices:
        return value  # type: ignore[no-any-return]
    digits = 4 if parameter.step is None else 12
    return min(max(float(f"{value:.{digits}g}"), parameter.low), parameter.high)


def _frozen(record: Record, made: Mapping[str, Any]) -> Any:
    """A trial for the sampler. One that waits at a rung counts as pruned there, with the rung as its step."""
    import optuna
    from optuna.trial import TrialState

    states = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL, "running": TrialState.RUNNING}
    state = states.get(record.state, TrialState.PRUNED)
    reached = {rung: value for rung, (_, value) in enumerate(record.rungs)} or record.validations
    pruned_without_value = state == TrialState.PRUNED and not reached
    return optuna.create_trial(
        state=TrialState.FAIL if pruned_without_value else state,
        value=record.value if record.state == "complete" else None,
        params=dict(record.values),
        distributions=dict(made),
        intermediate_values=dict(reached) if state == TrialState.PRUNED else {},
    )
