"""F17: the value of a secret environment variable stands in nothing that a program prints or writes, whether it ends
well or not; but where the user wrote it into the recipe itself, which is kept as it is and warned about.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.main import main as evaluate
from tests.support import eval_checkpoints
from tests.support.fault_runs import Zygote
from tests.support.training_runs import arguments, write_rows
from train.merge.__main__ import main as merge
from train.report.__main__ import main as report

CANARY = "hf_canary_5f21c8"  # Markdown escapes _
AS_GIVEN = {"config.yaml", "manifest.json"}  # both are read again, to merge and to resume


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)


def holding(folder: Path) -> set[str]:
    """Names of the files under `folder` that hold the secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 1
    return {path.name for path in files if CANARY.encode() in path.read_bytes()}


def test_a_run_that_ends_well(zygote: Zygote, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = {"watch.tensorboard": "true", "merge.at_end": "true", "validation.samples": 2, "duration.max_steps": 2}
    processes = zygote.run(arguments(run, write_rows(tmp_path), **options), tmp_path / "log")
    assert processes.codes == [0], processes.output
    assert CANARY not in processes.output
    written = {path.name for path in run.rglob("*")}
    assert {"run.json", "status.json", "report.md", "metrics.jsonl", "merged", *AS_GIVEN} <= written
    assert not holding(run)


def test_rows_that_hold_the_secret(zygote: Zygote, tmp_path: Path) -> None:
    """Samples of held-out rows reach the terminal, TensorBoard, samples/ and the report, masked everywhere; and a row's
    escape sequence reaches no terminal.
    """
    rows, run = tmp_path / "rows.jsonl", tmp_path / "run"
    row = {"question": f"Is \x1b[2J {CANARY} a secret?", "answer": f"Yes, {CANARY} is."}
    rows.write_text("".join(json.dumps({**row, "question": f"{k}. {row['question']}"}) + "\n" for k in range(8)))
    options = {"watch.tensorboard": "true", "validation.samples": 2, "duration.max_steps": 2, "merge.at_end": "false"}
    options |= {"data.validation_fraction": 0.5, "validation.every_steps": 1}
    processes = zygote.run(arguments(run, rows, **options), tmp_path / "log")
    assert processes.codes == [0], processes.output
    assert CANARY not in processes.output
    assert "\x1b[2J" not in processes.output
    samples = max((run / "samples").glob("*.jsonl")).read_text()
    assert "*** a secret?" in samples
    assert "a secret?" in (run / "report.md").read_text()
    assert "\x1b" not in (run / "report.md").read_text()
    assert not holding(run)


def test_a_run_that_fails_with_the_secret_in_its_message(zygote: Zygote, tmp_path: Path) -> None:
    words = arguments(tmp_path / "run", write_rows(tmp_path), **{"model.path": f"no/such/{CANARY}/model"})
    processes = zygote.run(words, tmp_path / "log")
    assert processes.codes == [64], processes.output
    assert "no/such/***/model" in processes.output
    assert CANARY not in processes.output
    assert not (tmp_path / "run").exists()  # the run has not begun


def test_a_traceback(zygote: Zygote, tmp_path: Path) -> None:
    """An error of the program, as the interpreter prints it."""
    orders = [{"at": "train.engine.loop:Loop._update", "do": f"touch {tmp_path / CANARY / 'no-such-folder'}"}]
    processes = zygote.run(arguments(tmp_path / "run", write_rows(tmp_path)), tmp_path / "log", orders=orders)
    assert processes.codes == [1], processes.output
    assert "***/no-such-folder" in processes.output
    assert CANARY not in processes.output
    assert "***" in (tmp_path / "run" / "status.json").read_text()
    assert not holding(tmp_path / "run") - AS_GIVEN


def test_a_recipe_that_holds_the_secret_is_warned_about_and_kept(zygote: Zygote, tmp_path: Path) -> None:
    (tmp_path / CANARY).mkdir()
    rows, run = write_rows(tmp_path / CANARY), tmp_path / "run"
    options = {"watch.tensorboard": "true", "merge.at_end": "true", "duration.max_steps": 2}
    processes = zygote.run(arguments(run, rows, **options), tmp_path / "log")
    assert processes.codes == [0], processes.output
    assert "data.train contains the value of $HF_TOKEN" in processes.output
    assert "data.cache_folder contains the value of $HF_TOKEN" in processes.output
    assert CANARY not in processes.output
    assert holding(run) == AS_GIVEN


def test_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The secret in a question, in a reference, and in the names of the folders of model and data."""
    folder, out = tmp_path / CANARY, tmp_path / "out"
    eval_checkpoints.save(folder / "model")
    rows = folder / "rows.jsonl"
    question = {"question": f"What is {CANARY}?", "answer": f"It is {CANARY}."}
    rows.write_text(json.dumps(question) + "\n", encoding="utf-8")
    words = ["--model", str(folder / "model"), "--tasks", "qa,perplexity,samples", "--data", f"qa={rows}"]
    words += ["--data", f"perplexity={rows}", "--out", str(out), "--max_new_tokens", "2", "--training_data", str(rows)]
    assert evaluate(words) == 0
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err
    assert {"report.html", "report.md", "result.json", "metrics.png"} <= {path.name for path in out.rglob("*")}
    assert "***" in (out / "report.html").read_text(encoding="utf-8")
    assert not holding(out)
    assert not [path for path in out.rglob("*") if CANARY in path.name]


PROGRAMS = {
    "train.merge": (merge, [f"no/{CANARY}", "out"]),
    "train.report": (report, [f"no/{CANARY}"]),
    "eval": (evaluate, ["--model", f"no/{CANARY}", "--tasks", "qa", "--data", f"no/{CANARY}.jsonl"]),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_messages_of_the_other_programs(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    main, words = PROGRAMS[program]
    assert main(words) == 64
    said = capsys.readouterr()
    assert "no/***" in said.err
    assert CANARY not in said.out + said.err
