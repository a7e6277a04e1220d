"""The tables of docs/planning.md are those that their script makes."""

from __future__ import annotations

import pytest

from examples import make_planning_tables as script
from zerotune.common.markdown import table


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_rows_are_on_the_page(kind: str) -> None:
    """The smallest size and one that needs shards; all of them take a minute."""
    for row in script.rows(kind, ["0.5 B", "7 B"]):
        line = table(["head"] * len(row), [row]).splitlines()[-1]
        assert line in script.on_page().splitlines()


def test_the_page_has_all_sizes() -> None:
    assert [script.on_page().count(f"| {size} |") for size in script.SIZES] == [2] * len(script.SIZES)
