"""Additions from outside (tests/support/toy) in real runs: objective, tuning, row format, task and metric."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support.training_runs import ROOT, arguments, environment, metrics, pretrained_stand_in

RIDDLES = [{"riddle": f"What comes after {i}?", "solution": f"{i + 1}"} for i in range(24)]
RIDDLES += [{"riddle": f"{i}之后是什么？", "solution": f"{i + 1}。"} for i in range(24)]
LENGTHS = """\
name: lengths
kind: generate
prompt: "{{ riddle }}"
reference: solution
metrics: [same_length, exact_match]
"""


def run(*words: str, code: int = 0, program: str = "tests.support.toy") -> str:
    command = [sys.executable, "-m", program, *words]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained and merged run."""
    folder = tmp_path_factory.mktemp("toy")
    pretrained_stand_in(folder / "model")
    rows = folder / "riddles.jsonl"
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in RIDDLES), encoding="utf-8")
    options = arguments(
        folder / "run", rows, optim__name="sgd",
        objective="focal", focal__gamma=1.5, tuning__kind="biases",
        model__path=folder / "model", model__init="pretrained",
        data__train=json.dumps([{"path": str(rows), "format": "riddle"}]), data__workers=2, duration__max_epochs=2,
        optim__learning_rate=1e-1, merge__at_end="true",
    )  # fmt: skip
    run("train", *options)
    return folder


def test_the_objective_learns_with_the_tuning_from_the_format(place: Path) -> None:
    losses = metrics(place / "run", "validation/loss")
    assert losses[max(losses)] < losses[0]
    facts = json.loads((place / "run" / "run.json").read_text(encoding="utf-8"))
    assert facts["config"]["objective"] == "focal"
    assert facts["config"]["focal"] == {"gamma": 1.5}
    assert 0 < facts["parameters"]["trained"] < facts["parameters"]["total"]


def test_the_merge_has_the_trained_vectors_and_the_matrices_of_the_base(place: Path) -> None:
    base, merged = (load_file(place / folder / "model.safetensors") for folder in ("model", "run/merged"))
    changed = {name for name, tensor in merged.items() if not tensor.equal(base[name])}
    assert changed
    assert all(base[name].ndim == 1 for name in changed)


def test_the_objective_has_a_section_of_the_recipe(place: Path) -> None:
    assert "--focal.gamma NUMBER" in run("train", "--help")
    recipe = place / "focal.yaml"
    recipe.write_text("objective: focal\nfocal:\n  gamma: -1\n", encoding="utf-8")
    words = ["train", "--config", str(recipe), "--model.path", "m", "--data.train", "[{path: x, format: riddle}]"]
    said = run(*words, "--focal.beta", "1", code=64)
    assert "focal.yaml:3: focal.gamma: must be greater than or equal to 0, not -1" in said
    assert "unknown option --focal.beta" in said
    assert "optim.beta1: sgd does not use it" in run(*words, "--optim.name", "sgd", "--optim.beta1", "0.5", code=64)
    assert "gamma: 3.0" in run(*words, "--focal.gamma", "3", "--print_config")
    assert "gamma: 2" not in run(*words, "--focal.gamma", "2", "--objective", "causal_lm", "--print_config")


def test_the_task_and_the_metric_are_measured(place: Path) -> None:
    (place / "lengths.yaml").write_text(LENGTHS, encoding="utf-8")
    run(
        "eval", "--model", str(place / "run" / "merged"), "--tasks", f"riddles,{place / 'lengths.yaml'}",
        "--data", str(place / "riddles.jsonl"), "--max_rows", "6", "--max_new_tokens", "4",
        "--out", str(place / "eval"),
    )  # fmt: skip
    found = json.dumps([json.loads(path.read_text()) for path in (place / "eval").rglob("result.json")])
    assert all(f'"{name}"' in found for name in ("characters", "same_length", "exact_match"))


def test_without_the_package_they_are_unknown(place: Path) -> None:
    words = ["--objective", "focal", "--tuning.kind", "biases", "--model.path", "m"]
    words += ["--data.train", "[{path: x, format: riddle}]"]
    said = run(*words, code=64, program="train.main")
    assert all(word in said for word in ("objective: expected one of", "tuning.kind: expected one of", "riddle"))


def test_a_merge_without_the_package_says_what_to_do(place: Path) -> None:
    said = run(str(place / "run"), str(place / "out"), code=64, program="train.merge")
    assert "objective: expected one of" in said
    assert (
        'import that package, then call the main function of this command (docs/architecture.md, "From outside")'
        in said
    )
    run("merge", str(place / "run"), str(place / "out"))
    run("report", str(place / "run"))
