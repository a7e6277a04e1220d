"""F20: a killed evaluation goes on with the answers that it has, on any number of ranks, to the same numbers.

(The over-long prompt of F20 is in tests/unit/eval/test_evaluation.py, batches of 1, 7 and 16 requests are in
tests/unit/inference/test_model.py.)
"""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.support import eval_checkpoints
from tests.support.evaluations import ROOT, alone, on_two_ranks
from tests.support.inject import VARIABLE

ROWS = 100
SEVEN, MANY = "182", "4096"  # batch_tokens: a request is about 26 tokens behind the block that all share
WORDS = "--model model --tasks perplexity --data rows.jsonl --precision fp32".split()


def killed_at(answer: int, rank: int) -> dict[str, str]:
    """The environment of a process that dies as soon as its nth answer is on disk."""
    at = "zerotune.inference.answer_cache:AnswerCache.write"
    order = {"at": at, "when": "after", "nth": answer, "rank": rank, "do": "SIGKILL"}
    return {VARIABLE: json.dumps([order]), "PYTHONPATH": str(ROOT / "tests" / "support" / "plug")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """100 rows behind one few-shot block."""
    few_shot = "What is the capital of France? It is Paris. " * 2
    rows = [{"question": f"{few_shot}Is {k} a prime?", "answer": "yes" * (1 + k % 3)} for k in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    eval_checkpoints.save(tmp_path / "model", context_tokens=256)
    return tmp_path


def written(out: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in (out / "journal").glob("*.jsonl"))


def reused(errors: str) -> int:
    (found,) = re.findall(r"model: perplexity: (\d+) of 100 answers from the journal", errors)
    return int(found)


def numbers(out: Path) -> tuple[float, list[float]]:
    (task,) = json.loads((out / "result.json").read_text())["tasks"]
    (metric,) = [metric for metric in task["metrics"] if metric["name"] == "perplexity"]
    rows = (out / "samples" / "perplexity.model.jsonl").read_text().splitlines()
    return metric["estimates"][0]["value"], [json.loads(row)["nll"] for row in rows]


def assert_same(one: Path, other: Path) -> None:
    (value, nll), (expected, expected_nll) = numbers(one), numbers(other)
    assert len(nll) == ROWS
    assert value == pytest.approx(expected, rel=1e-6)
    assert nll == pytest.approx(expected_nll, rel=1e-6, abs=1e-5)


def test_killed_at_37_of_100_alone_and_again_on_two_ranks(folder: Path) -> None:
    code, _, errors = alone(folder, *WORDS, "--out", "out", "--batch_tokens", SEVEN, extra=killed_at(37, rank=0))
    assert code == -signal.SIGKILL, errors
    assert written(folder / "out") == 37
    code, _, errors = on_two_ranks(folder, *WORDS, "--out", "out", "--batch_tokens", "1")
    assert code == 0, errors
    assert reused(errors) == 37
    assert written(folder / "out") == ROWS, "nothing is asked twice"
    code, _, errors = alone(folder, *WORDS, "--out", "whole", "--batch_tokens", MANY)
    assert code == 0, errors
    assert_same(folder / "out", folder / "whole")
    code, _, errors = alone(folder, *WORDS, "--out", "out")
    assert (code, reused(errors)) == (0, ROWS)
    assert_same(folder / "out", folder / "whole")


def test_ctrl_c_says_how_to_go_on(folder: Path) -> None:
    order = json.loads(killed_at(37, rank=0)[VARIABLE])[0] | {"do": "SIGINT"}
    extra = killed_at(37, rank=0) | {VARIABLE: json.dumps([order])}
    code, _, errors = alone(folder, *WORDS, "--out", "out", "--batch_tokens", SEVEN, extra=extra)
    assert code == -signal.SIGINT, errors
    assert errors.endswith(
        "\nStopped by Ctrl-C. out/journal keeps the answers so far; the same command computes only the rest.\n"
    )
    assert "Traceback" not in errors
    code, _, errors = alone(folder, *WORDS, "--out", "out")
    assert (code, reused(errors)) == (0, 37)


def test_killed_on_two_ranks_and_again_alone(folder: Path) -> None:
    code, _, errors = on_two_ranks(folder, *WORDS, "--out", "out", extra=killed_at(20, rank=1))
    assert code != 0
    before = written(folder / "out")
    assert 20 <= before <= 20 + ROWS // 2 + 1, errors
    code, _, errors = alone(folder, *WORDS, "--out", "out", "--batch_tokens", "1")
    assert (code, reused(errors)) == (0, before), errors
    code, _, errors = on_two_ranks(folder, *WORDS, "--out", "whole")
    assert code == 0, errors
    assert_same(folder / "out", folder / "whole")
