"""What is allowed and most likely not meant is said before the first step, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from train.config import OptimConfig
from train.recipe_warnings import about_positions, about_schedule, positions_of
from zerotune.common.console import counted
from zerotune.inference.reasoning import without_partial_character


@pytest.mark.parametrize(
    ("options", "steps", "key"),
    [
        ({"warmup_steps": 100}, 100, "optim.warmup_steps"),
        ({"warmup_steps": 500}, 100, "optim.warmup_steps"),
        ({"warmup_steps": 99}, 100, None),
        ({"warmup_fraction": 1.0}, 100, "optim.warmup_fraction"),
        ({"warmup_fraction": 0.03}, 1, None),  # one step of warmup is none
        ({"warmup_steps": 0}, 1, None),
        ({}, 6, None),
    ],
)
def test_about_schedule_warns_of_a_too_long_warmup(options: dict[str, float], steps: int, key: str | None) -> None:
    told = list(about_schedule(OptimConfig(**options), steps))  # type: ignore[arg-type]
    assert [line.startswith(f"WARNING {key}: ") for line in told] == [True] * (key is not None)


PLAIN = SimpleNamespace(max_position_embeddings=2048, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (PLAIN, 2048),
        (SimpleNamespace(max_position_embeddings=32768, rope_parameters=YARN), 131072),
        (SimpleNamespace(max_position_embeddings=131072, rope_parameters=YARN), 131072),
        (SimpleNamespace(max_position_embeddings=4096, rope_parameters={"full": YARN, "sliding": {}}), 131072),
        (SimpleNamespace(), None),  # Mamba
        (SimpleNamespace(max_position_embeddings=None, rope_parameters=None), None),
    ],
)
def test_positions_of_includes_rope_scaling(config: object, limit: int | None) -> None:
    assert positions_of(config) == limit


def test_about_positions_warns_of_too_long_rows() -> None:
    assert list(about_positions(2048, PLAIN)) == []
    [line] = about_positions(2049, PLAIN)
    assert "the longest row has 2,049 tokens, the model was trained for 2,048" in line


def test_counted_uses_singular_and_plural() -> None:
    assert [counted(1, "pass", "passes"), counted(2000, "pass", "passes")] == ["1 pass", "2,000 passes"]
    assert [counted(0, "row"), counted(1, "row")] == ["0 rows", "1 row"]


@pytest.mark.parametrize("text", ["北京", "เมือง", "😀", "Привет", "plain"])
def test_without_partial_character_ends_in_a_whole_one(text: str) -> None:
    raw = text.encode()
    for end in range(len(raw) + 1):
        cut = without_partial_character(raw[:end].decode("utf-8", "replace"))
        assert text.startswith(cut)
