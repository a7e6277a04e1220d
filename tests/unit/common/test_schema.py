"""What a configuration of dataclasses accepts; tests/unit/train/test_recipe.py has the messages of the recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from pydantic import PositiveInt, with_config

from zerotune.common.errors import UserError
from zerotune.common.schema import STRICT, checked


@dataclass(frozen=True)
class Part:
    size: PositiveInt
    limit: int | None
    name: str = ""


@with_config(STRICT)
@dataclass(frozen=True)
class Settings:
    parts: list[Part] = field(default_factory=list)
    rows: int = 1


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ({}, ["parts[0].limit is missing: a whole number or null", "parts[0].size is missing: a whole number"]),
        ({"size": 0, "limit": 2}, ["parts[0].size: must be greater than 0, not 0"]),
        ({"size": "x", "limit": 2}, ["parts[0].size: expected a whole number, got 'x'"]),
    ],
)
def test_a_missing_number_is_reported_with_other_problems(part: dict[str, object], wrong: list[str]) -> None:
    config, faults = checked(Settings, {"parts": [part], "rows": "2"})
    assert sorted(fault.message for fault in faults) == [*wrong, "rows: expected a whole number, got '2'"]
    assert config == Settings()


@with_config(STRICT)
@dataclass(frozen=True)
class Needy:
    rows: int


@pytest.mark.timeout(10)
def test_a_missing_number_of_the_outermost_section_is_an_error() -> None:
    with pytest.raises(UserError, match="rows is missing: a whole number"):
        checked(Needy, {})
