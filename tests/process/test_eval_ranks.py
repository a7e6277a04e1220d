"""The documented command with two real processes gives what one process gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import eval_checkpoints
from tests.support.evaluations import alone, on_two_ranks
from tests.unit.eval.test_numeric_task import save as save_with_numbers


def wording(text: str) -> str:
    """Without digits: a number on the edge of a rounding may be shown either way; result.json is compared exactly."""
    return re.sub("[0-9]+", "#", text)


def compared(value: Any, nearly: bool = False) -> Any:
    """Without what differs by right; nearly: to 1e-5."""
    if isinstance(value, dict):
        kept = {k: inner for k, inner in value.items() if k not in ("seconds", "created", "ranks", "out")}
        if isinstance(kept.get("tokens"), dict):  # of a task: what prompts share is computed once on each rank
            del kept["tokens"]
        return {k: compared(inner, nearly) for k, inner in kept.items()}
    if isinstance(value, list):
        return [compared(inner, nearly) for inner in value]
    return pytest.approx(value, rel=1e-5, abs=1e-5) if nearly and isinstance(value, float) else value


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    rows = [
        {"question": f"Which number is {k}?" * (1 + k % 3), "answer": f"Paris {k}, " * (1 + k % 2)} for k in range(7)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed, name in enumerate(["before", "after"]):
        eval_checkpoints.save(tmp_path / name, seed)
    save_with_numbers(tmp_path / "numbers")
    models = "--baseline before --model after --model numbers".split()
    tasks = "--tasks perplexity,qa,numeric --data rows.jsonl".split()
    return [*models, *tasks, "--max_new_tokens", "5", "--precision", "fp32"]


def test_two_ranks_give_what_one_gives(words: list[str], tmp_path: Path) -> None:
    two, two_output, two_errors = on_two_ranks(tmp_path, *words, "--out", "two")
    assert two == 0, two_errors
    one, one_output, one_errors = alone(tmp_path, *words, "--out", "one")
    assert one == 0, one_errors
    assert wording(one_output.replace("one/", "two/")) in wording(two_output)
    single, together = (json.loads((tmp_path / out / "result.json").read_text()) for out in ("one", "two"))
    assert (single["settings"]["ranks"], together["settings"]["ranks"]) == (1, 2)
    assert compared(single) == compared(together, nearly=True)
    for path in (tmp_path / "one" / "samples").iterdir():
        single, together = ((tmp_path / out / "samples" / path.name).read_text() for out in ("one", "two"))
        assert [compared(json.loads(line)) for line in single.splitlines()] == [
            compared(json.loads(line), nearly=True) for line in together.splitlines()
        ]


def test_a_mistake_ends_both_ranks_with_its_message(words: list[str], tmp_path: Path) -> None:
    code, _, errors = on_two_ranks(tmp_path, *words, "--data", "qa=nowhere.jsonl")
    assert code != 0
    assert "error: nowhere.jsonl: no such file" in errors
