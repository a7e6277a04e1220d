"""The space file: which recipe keys a search changes, and how it chooses. Checked before anything starts."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, with_config

from train.config import Config
from train.recipe import parse
from train.suggest import about_key, parse_key
from zerotune.common.errors import UserError
from zerotune.common.schema import STRICT, checked, is_section, kind_at, shown
from zerotune.common.suggest import did_you_mean
from zerotune.common.yaml_lines import KeyPath, Located, dotted, read_yaml

Label = str | int | float | bool | None  # what stands for a value in the journal, tables and figures

MOST_POINTS = 256  # of a grid whose file does not say how many trials it may have
MOST_VALUES = 2**53  # of a range with a step: more are not different numbers
RANGE = ("low", "high", "log", "step")
# Keys that the search sets itself.
OWN = (
    "run.folder", "run.resume", "run.extend", "run.stop_after_minutes", "run.stop_at_share", "validation.metric",
    "merge", "model.trust_remote_code",
)  # fmt: skip


@with_config(STRICT)
@dataclass(frozen=True)
class SpaceConfig:
    """A space file.

    Args:
        parameters: A recipe key -> a list of values, or {low, high, log, step}. Another name -> a list of mappings of
            keys that are set together, each with a `name`.
        metric: The validation metric that decides; auto is the objective's own.
        method: grid tries every combination, random draws, tpe learns from the trials so far (arXiv:2304.11127).
        pruner: median stops trials that are worse than the median of the others at the same step; halving and
            hyperband train all trials a little and resume the best (arXiv:1810.05934, arXiv:1603.06560).
        trials: How many; of a grid, the most that it may have.
        seed: Fixes which values are drawn.
        startup_trials: Trials before tpe learns and median stops any.
        reduction: With halving and hyperband one of so many trials goes on to the next rung.
        rungs: Their number; the last is the whole run, each one before is 1/reduction as long as the next.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    metric: str = "auto"
    method: Literal["grid", "random", "tpe"] = "tpe"
    pruner: Literal["none", "median", "halving", "hyperband"] = "none"
    trials: PositiveInt | None = None
    seed: NonNegativeInt = 0
    startup_trials: PositiveInt = 5
    reduction: Annotated[int, Field(ge=2)] = 2
    rungs: Annotated[int, Field(ge=2, le=8)] = 4


@dataclass(frozen=True)
class Parameter:
    """One parameter of the search: choices, or a range.

    choices: label -> the recipe keys that it sets. low, high, step: of a range; whole: of whole numbers.
    """

    name: str
    place: str
    choices: Mapping[Label, Mapping[str, Any]] = field(default_factory=dict)
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    whole: bool = False

    def settings(self, value: Label) -> Mapping[str, Any]:
        """The recipe keys that a value of this parameter sets."""
        return self.choices[value] if self.choices else {self.name: value}

    @property
    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for made in self.choices.values() for key in made)) or [self.name]

    @property
    def tried(self) -> list[Label]:
        """The values that are checked before the start: all choices; the two ends of a range, which may have many."""
        return list(dict.fromkeys(self.choices or map(self._number, (self.low, self.high))))

    @property
    def points(self) -> list[Label]:
        """All values of a countable parameter."""
        assert self.count is not None
        return [self.at(place) for place in range(self.count)]

    @property
    def count(self) -> int | None:
        """How many values there are; None of a range of real numbers."""
        if self.choices or self.low == self.high:
            return max(len(self.choices), 1)
        if self.step is None and not self.whole:
            return None
        return math.floor((self.high - self.low) / (self.step or 1) + 1e-9) + 1

    def at(self, place: int) -> Label:
        """One of `count` values."""
        if self.choices:
            return list(self.choices)[place]
        return self._number(Decimal(str(self.low)) + place * Decimal(str(self.step or 1)))

    @property
    def is_countable(self) -> bool:
        return bool(self.choices) or self.step is not None or self.low == self.high

    def _number(self, value: float | Decimal) -> float:
        return int(value) if self.whole else float(value)


@dataclass(frozen=True)
class Space:
    """A checked space file. places: of its values. metric: still auto, until the objective is known."""

    config: SpaceConfig
    parameters: Sequence[Parameter]
    located: Located

    @property
    def trials(self) -> int:
        """How many trials the search has."""
        if self.config.method == "grid":
            assert self.points is not None
            return self.points
        assert self.config.trials is not None
        return self.config.trials if self.points is None else min(self.config.trials, self.points)

    @property
    def points(self) -> int | None:
        """How many different trials there can be; None with a range of real numbers."""
        counts = [parameter.count for parameter in self.parameters]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    @property
    def is_exhausted(self) -> bool:
        """Whether the file asks for more trials than there are points: no point is trained twice."""
        return self.config.method != "grid" and self.trials < (self.config.trials or 0)

    def settings(self, values: Mapping[str, Label]) -> dict[str, Any]:
        """The recipe keys that a trial's values set."""
        by_name = {parameter.name: parameter for parameter in self.parameters}
        return {key: made for name, value in values.items() for key, made in by_name[name].settings(value).items()}

    def grid_point(self, number: int) -> dict[str, Label]:
        """The values of a grid's trial: the last parameter changes first."""
        found = {}
        for parameter in reversed(self.parameters):
            assert parameter.count is not None
            number, place = divmod(number, parameter.count)
            found[parameter.name] = parameter.at(place)
        return dict(reversed(found.items()))


def read_space(path: Path) -> Space:
    """The space in a file, checked by itself. Raises UserError with all that is wrong in it."""
    located = read_yaml(path)
    if not isinstance(located.value, dict):
        raise UserError(f"{path}: is no mapping of keys to values; it needs `parameters:`, see docs/search.md")
    if not set(located.value) & set(SpaceConfig.__dataclass_fields__):
        raise UserError(f"{path}: is no space: it has no `parameters:`, see docs/search.md")
    config, problems = checked(SpaceConfig, located.value)
    wrong = [
        f"{_place(located, problem.key)}: {problem.message}"
        + (did_you_mean(str(problem.key[-1]), SpaceConfig.__dataclass_fields__) if problem.unknown else "")
        for problem in problems
    ]
    if not config.parameters and not wrong:
        wrong.append(f"{_place(located, ('parameters',))}: parameters is empty: name at least one recipe key")
    parameters = []
    for name, value in config.parameters.items():
        try:
            parameters.append(_parameter(name, value, located))
        except UserError as error:
            wrong.append(str(error))
    if not wrong:
        wrong = [*_twice(parameters), *_sizes(config, parameters, located)]
    if wrong:
        raise UserError("\n".join(wrong))
    return Space(config, parameters, located)


def _place(located: Located, key: KeyPath) -> str:
    while key not in located.places:
        key = key[:-1]
    return located.places[key]


def _parameter(name: str, value: Any, located: Located) -> Parameter:
    key: KeyPath = ("parameters", name)
    place = _place(located, key)
    kind = kind_at(Config, parse_key(name))
    is_key = kind is not None and not is_section(kind)
    together = isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    if not is_key and not together:
        raise UserError(f"{place}: unknown key {name}{about_key(parse_key(name), None, dotted)}")
    if isinstance(value, dict):
        return _range(name, value, place)
    if not isinstance(value, list):
        raise UserError(f"{place}: {name}: expected a list of values or {{low, high, log, step}}, got {shown(value)}")
    if not value:
        raise UserError(f"{place}: {name}: an empty list; give at least one value")
    if is_key:
        _require_free(name, place)
        made = [(_label(item), {name: item}) for item in value]
    else:
        made = [_set_together(name, item, k, located) for k, item in enumerate(value)]
    labels = [label for label, _ in made]
    if twice := [label for k, label in enumerate(labels) if label in labels[:k]]:
        raise UserError(f"{place}: {name}: {shown(twice[0])} stands there twice")
    return Parameter(name, place, dict(made))


def _set_together(name: str, item: Mapping[str, Any], index: int, located: Located) -> tuple[Label, dict[str, Any]]:
    place = _place(located, ("parameters", name, index))
    settings = {key: value for key, value in item.items() if key != "name"}
    if not settings:
        raise UserError(f"{place}: {name}: sets no recipe key")
    for key in settings:
        at = _place(located, ("parameters", name, index, key))
        if kind_at(Config, parse_key(key)) is None:
            raise UserError(f"{at}: unknown key {key}{about_key(parse_key(key), settings[key], dotted)}")
        _require_free(key, at)
    label = item.get("name", ", ".join(f"{key} {_label(value)}" for key, value in settings.items()))
    return str(label), settings


def _require_free(key: str, place: str) -> None:
    if f"{key}.".startswith(tuple(f"{own}." for own in OWN)):
        raise UserError(f"{place}: {key} is set by the search itself; remove it")


def _label(value: Any) -> Label:
    plain = value is None or isinstance(value, str | int | float | bool)
    return value if plain else json.dumps(value, ensure_ascii=False)


def _range(name: str, value: Mapping[str, Any], place: str) -> Parameter:
    _require_free(name, place)
    kind = kind_at(Config, parse_key(name))
    options = get_args(kind) or (kind,)
    if bool in options or is_section(kind) or not {int, float} & set(options):
        raise UserError(f"{place}: {name} is no number: give a list of values instead of a range")
    if unknown := [key for key in value if key not in RANGE]:
        near = did_you_mean(unknown[0], RANGE) or f"; a range has {', '.join(RANGE)}"
        raise UserError(f"{place}: {name}: unknown key {unknown[0]}{near}")
    if missing := [key for key in ("low", "high") if key not in value]:
        raise UserError(f"{place}: {name}: {missing[0]} is missing; a range has {', '.join(RANGE)}")
    low, high, log, step = value["low"], value["high"], value.get("log", False), value.get("step")
    whole = float not in options
    for key, number in (("low", low), ("high", high), *([] if step is None else [("step", step)])):
        if not _is_finite(number) or (whole and number != int(number)):
            wanted = "a whole number" if whole else "a number"
            raise UserError(f"{place}: {name}: {key}: expected {wanted}, got {shown(number)}")
    if not isinstance(log, bool):
        raise UserError(f"{place}: {name}: log: expected true or false, got {shown(log)}")
    if low > high:
        raise UserError(f"{place}: {name}: an empty range: low {low} is above high {high}")
    if log and (low <= 0 or step is not None):
        cure = "a logarithmic range has no step" if low > 0 else f"a logarithmic range begins above 0, not at {low}"
        raise UserError(f"{place}: {name}: {cure}")
    if step is not None and step <= 0:
        raise UserError(f"{place}: {name}: step must be above 0, not {step}")
    made = Parameter(name, place, {}, low, high, log, step, whole)
    if step is None or low == high:
        return made
    if not (high - low) / step < MOST_VALUES:
        raise UserError(f"{place}: {name}: step {step} is too small for a range from {low} to {high}")
    if made.count == 1:
        raise UserError(f"{place}: {name}: step {step} is larger than the range from {low} to {high}")
    last = made.at((made.count or 1) - 1)
    assert isinstance(last, int | float)
    return replace(made, high=last)  # the last step may end below `high`


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= sys.float_info.max


def _twice(parameters: Sequence[Parameter]) -> Iterator[str]:
    seen: dict[str, Parameter] = {}
    for parameter in parameters:
        for key in parameter.keys:
            for other, first in seen.items():
                if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                    yield f"{parameter.place}: {key} is set by {first.name} too ({first.place}); keep one of them"
            seen[key] = parameter


def _sizes(config: SpaceConfig, parameters: Sequence[Parameter], located: Located) -> Iterator[str]:
    if config.method != "grid":
        if config.trials is None:
            yield f"{_place(located, ())}: trials is missing: say how many trials {config.method} may have"
        return
    for parameter in parameters:
        if not parameter.is_countable:
            yield f"{parameter.place}: {parameter.name}: a grid needs a list of values, or a range with a step"
            return
    sizes = [parameter.count or 1 for parameter in parameters]
    points = math.prod(sizes)
    most = config.trials or MOST_POINTS
    if points > most:
        count = " x ".join(f"{size:,}" for size in sizes) + f" = {points:,}" * (len(sizes) > 1)
        limit = f"trials: {most}" if config.trials else f"{most}, the most without `trials`"
        yield (
            f"{_place(located, ('trials',) if config.trials else ('parameters',))}: the grid has {count} "
            f"trials, more than {limit}. Shorten a list, set trials: {points}, or use method: random"
        )


def check_values(space: Space, arguments: Sequence[str], check_inputs: Callable[[Config], None]) -> None:
    """Raise UserError with every value of the space that the recipe refuses, or that is another one again; and with all
    points of a grid that it refuses.

    arguments: of the base recipe, which is checked first, its files by `check_inputs`.
    """
    check_inputs(parse(arguments))
    wrong: list[str] = []
    for parameter in space.parameters:
        made: list[tuple[Label, Config]] = []
        for value in parameter.tried:
            try:
                config = _accepted(space, parameter, value, arguments, check_inputs)
            except UserError as error:
                wrong += str(error).splitlines()
                continue
            if same := [shown(label) for label, other in made if other == config]:
                where = f"{parameter.place}: {parameter.name}"
                wrong.append(f"{where}: {same[0]} and {shown(value)} give the same recipe; keep one of them")
            made.append((value, config))
    if not wrong and space.config.method == "grid":
        place = _place(space.located, ("parameters",))
        for number in range(space.trials):
            try:
                _recipe(arguments, space.settings(space.grid_point(number)), place)
            except UserError as error:
                wrong += str(error).splitlines()
    if wrong:
        raise UserError("\n".join(dict.fromkeys(wrong)))


def _accepted(
    space: Space, parameter: Parameter, value: Label, arguments: Sequence[str], check_inputs: Callable[[Config], None]
) -> Config:
    """The recipe with one value: alone, or where it is refused alone with values of the other parameters.

    Raises UserError with what is said against it alone.
    """
    try:
        return _recipe(arguments, parameter.settings(value), parameter.place, check_inputs)
    except UserError:
        others = [other for other in space.parameters if other is not parameter]
        for point in _combinations([other.tried for other in others]):
            labels = {parameter.name: value} | {other.name: label for other, label in zip(others, point, strict=True)}
            with contextlib.suppress(UserError):
                return _recipe(arguments, space.settings(labels), parameter.place, check_inputs)
        raise


def _combinations(lists: Sequence[Sequence[Label]]) -> Iterator[tuple[Label, ...]]:
    """One item of each list: all combinations where they are few, else as many random ones."""
    if math.prod(map(len, lists)) <= MOST_POINTS:
        return itertools.product(*lists)
    dice = random.Random(0)  # noqa: S311 (no secret)
    return (tuple(map(dice.choice, lists)) for _ in range(MOST_POINTS))


def _recipe(
    arguments: Sequence[str],
    settings: Mapping[str, Any],
    place: str,
    check_inputs: Callable[[Config], None] = lambda config: None,
) -> Config:
    """The recipe with these settings. Raises UserError with what it says against them, `place` before each line."""
    try:
        config = parse(arguments, [(key, value, place) for key, value in settings.items()])
        if any(key.startswith(("model.", "data.", "ppo.")) for key in settings):
            check_inputs(config)
        return config
    except UserError as error:
        chosen = ", ".join(f"{key} {shown(value)}" for key, value in settings.items())
        lines = str(error).splitlines()
        said = [line if line.startswith(place) else f"{place}: with {chosen}: {line}" for line in lines]
        raise UserError("\n".join(said)) from error
