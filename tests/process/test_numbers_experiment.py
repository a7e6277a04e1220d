"""The experiment of examples/numbers_experiment.py as a user runs it, with few rows and steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from eval.main import main as evaluate
from examples import numbers_experiment
from tests.support.fault_runs import Zygote
from tests.support.training_runs import ROOT, metrics, pretrained_stand_in
from train.recipe import load

SMALL = {
    "rows": 4, "run.precision": "fp32", "duration.max_epochs": "null", "duration.max_steps": 4, "data.workers": 1,
    "validation.every_steps": 2, "checkpoint.every_steps": 2, "validation.samples": 0,
}  # fmt: skip
SETS = {
    "published": ("plain", "questions", "extreme", "boundary"),
    "reading": ("reading", "reading_far", "arithmetic", "words", "questions"),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("study", "weight"), [("published", 0), ("reading", 0.3)])
def test_one_page_for_all_models_and_sets(
    study: str, weight: float, zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(module: str, *words: str | Path) -> None:
        if module == "eval":
            assert evaluate([str(word) for word in words]) == 0
            return
        command, recipe, *options = map(str, words)
        assert (module, command) == ("train.cli", "train")
        processes = zygote.run(["--config", recipe, *options], tmp_path / f"log{len(list(tmp_path.iterdir()))}")
        assert set(processes.codes) == {0}, processes.output

    out = tmp_path / "out"
    options = {
        "study": study,
        "out": out,
        "number_token_weight": weight,
        "data.cache_folder": tmp_path / "cache",
        **SMALL,
    }
    base = []
    if study == "reading":
        base = [pretrained_stand_in(tmp_path / "base")]
        options |= {"model.path": base[0]}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(numbers_experiment, "run", run)
    words = (str(word) for pair in options.items() for word in (f"--{pair[0]}", pair[1]))
    monkeypatch.setattr(sys, "argv", ["x", *words])
    assert numbers_experiment.main() == 0

    untrained = [] if study == "reading" else ["untrained"]
    names = (*untrained, "digits", *(["digits-number-token-loss"] if weight else []), "values")
    objectives = {name: load(out / name / "config.yaml").objective for name in names}
    assert objectives == dict.fromkeys(names, "causal_lm") | dict.fromkeys([*untrained, "values"], "numeric")
    assert {name for name in names if metrics(out / name, "train/number_token")} == {
        name for name in names if "loss" in name
    }
    result = json.loads((out / "eval" / "result.json").read_text(encoding="utf-8"))
    assert [Path(model["path"]) for model in result["models"]] == [*base, *(out / name / "merged" for name in names)]
    tasks = {task["name"]: task for task in result["tasks"]}
    assert set(tasks) == {"numeric", *(["perplexity"] if base else [])}
    assert tasks["numeric"]["samples"] == 4 * len(SETS[study])
    groups = {group["name"] for metric in tasks["numeric"]["metrics"] for group in metric["groups"]}
    assert groups == {
        *SETS[study],
        *(["en", "zh"] if study == "reading" else []),
    }  # the rows of some sets name a language
    assert (out / "eval" / "report.html").is_file()
