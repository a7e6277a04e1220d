"""The command line of `eval`: what is meant is understood, what cannot be meant is refused at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from eval import protocols, readers, rows
from eval.config import parse
from eval.errors import UserError
from eval.evaluation import unique_names
from eval.prompt import Prompter
from eval.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]


def test_options_reach_the_configuration() -> None:
    words = "--model a --model b --baseline c --tasks qa,perplexity,qa --data all.jsonl --data qa=own.jsonl"
    config = parse([*words.split(), "--max_rows=7", "--precision", "fp32"])
    assert config.folders == ["c", "a", "b"]
    assert config.task_names == ["qa", "perplexity"]
    assert (config.data_of("qa"), config.data_of("perplexity")) == ("own.jsonl", "all.jsonl")
    assert (config.max_rows, config.precision) == (7, "fp32")


def test_a_file_name_may_hold_an_equals_sign() -> None:
    assert parse("--model a --tasks qa --data lr=1e-3.jsonl".split()).data_of("qa") == "lr=1e-3.jsonl"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tasks qa --data x", "give --model"),
        ("--model a --data x", "give --tasks"),
        ("--model a --tasks qaa --data x", "unknown task qaa; did you mean qa?"),
        ("--model a --tasks qa", "task qa needs data"),
        ("--model a --tasks qa,perplexity --data qa=x", "task perplexity needs data"),
        ("--modle a --tasks qa --data x", "unknown option --modle; did you mean --model?"),
        ("--model a --tasks qa --data x --max_rows many", "max_rows"),
        ("--model a --tasks qa --data x --max_rows -1", "--max_rows -1: must be at least 0"),
        ("--model a --tasks qa --data x --window_tokens 1", "must be 0 or at least 2"),
        ("--model a --tasks qa --data x --precision fp8", "precision"),
        ("--model a --tasks qa --data x --template nowhere.jinja", "--template nowhere.jinja"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(words.split())
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_help_names_every_task_and_imports_nothing_heavy() -> None:
    code = "import sys; from eval.main import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert all(name in done.stdout for name in TASKS)
    assert not {"torch", "transformers", "numpy", "matplotlib"} & set(done.stdout.split("'"))


def test_names_are_as_short_as_they_can_be() -> None:
    assert unique_names(["/x/base", "/y/merged"]) == ["base", "merged"]
    assert unique_names(["/x/one/merged", "/x/two/merged"]) == ["one/merged", "two/merged"]
    assert unique_names(["/x/one", "/x/one"]) == ["one", "one #2"]


def test_the_documented_task_works() -> None:
    """The page's own code, run as it stands."""
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    names: dict[str, object] = {"Sequence": Sequence, "Prompter": Prompter, **vars(protocols), **vars(rows)}
    exec(code, names)
    task = names["TASK"]
    assert isinstance(task, protocols.Task)
    item = task.load(readers.Row("rows.jsonl", 1, {"question": "?", "answer": "four"}))
    assert task.score(item, [protocols.Generated("five")]).values == {"same_length": 1.0}
    with pytest.raises(rows.BadExampleError):
        task.load(readers.Row("rows.jsonl", 2, {"text": "alone"}))
