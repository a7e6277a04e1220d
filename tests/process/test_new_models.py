"""Models from scratch, from the recipe to the evaluation: what lies in the run's folder, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file

from tests.support.eval_families import budget, plain_continuation, plain_score
from tests.support.fault_runs import Zygote
from tests.support.training_runs import ROOT, arguments, metrics, new_model, write_rows
from train.config import MergeConfig
from train.merge.steps import merge
from train.recipe import load
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.inference.model import LanguageModel
from zerotune.inference.requests import Generate, Score

FAMILIES = ("rnn", "lstm", "transformer")
STEPS = {
    "duration__max_epochs": 9,
    "duration__max_steps": 4,
    "checkpoint__every_steps": 2,
    "validation__samples": 2,
    "merge__at_end": "true",
}


class Runs:
    """Runs over one small data set."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote, self.rows = folder, zygote, write_rows(folder)

    def __call__(self, name: str, family: str, code: int = 0, **options: object) -> tuple[Path, str]:
        """(folder, output)"""
        run = self.folder / name
        words = arguments(run, self.rows, **STEPS | new_model(family) | options)
        processes = self.zygote.run(words, self.folder / name, "single")
        assert set(processes.codes) == {code}, processes.output
        return run, processes.output


@pytest.fixture(scope="module")
def runs(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("new"), zygote)


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest, runs: Runs) -> tuple[str, Path, str]:
    return (request.param, *runs(request.param, request.param))


def test_the_run_holds_the_model_that_it_began_with(trained: tuple[str, Path, str]) -> None:
    family, run, output = trained
    assert "tokenizer: 300 byte pairs learned from the training rows that are not held out" in output
    base = json.loads((run / "base" / "config.json").read_text())
    assert (base["hidden_size"], base["num_hidden_layers"], base["vocab_size"]) == (32, 2, 300)
    config = load(run / "config.yaml")
    assert (config.model.family, config.model.path) == (family, "")
    assert list(metrics(run, "validation/loss")) == [0, 3, 4]
    report = (run / "report.md").read_text(encoding="utf-8")
    assert f"| Model | {family} " in report
    assert "| Checked | the merged model answers as the trained one" in report
    merged = json.loads((run / "merged" / "config.json").read_text())
    assert merged["architectures"] == [{"rnn": "Rnn", "lstm": "Lstm", "transformer": "Llama"}[family] + "ForCausalLM"]
    assert str(run) not in json.dumps(merged)


def test_it_is_evaluated_like_any_checkpoint(trained: tuple[str, Path, str]) -> None:
    _, run, _ = trained
    checkpoint = open_checkpoint(str(run / "merged"), "new")
    model = cast(LanguageModel, checkpoint.load("language", "fp32", "none", torch.device("cpu")))
    ids = tuple(checkpoint.tokenizer("What is 3 plus 4? " * 5)["input_ids"])
    requests = [Score(ids[:1], ids[1:]), Score(ids[:9], ids[9:12]), Generate(ids[:7], 5, checkpoint.end_ids)]
    found = dict(model.answers(requests, budget(200)))
    assert checkpoint.end_ids == (checkpoint.tokenizer.eos_token_id,)
    for number, request in enumerate(requests[:2]):
        expected = plain_score(model.network.model, request)[0]
        assert found[number].log_prob == pytest.approx(expected, rel=1e-5)
    assert found[2].tokens == len(plain_continuation(model.network.model, requests[2]))


@pytest.mark.parametrize("family", ["rnn", "lstm"])
def test_adapters_of_a_new_model_are_merged(runs: Runs, family: str) -> None:
    options = {"tuning__kind": "lora", "optim__learning_rate": 0.1, "tuning__lora__targets": "[input, recurrent]"}
    run, _ = runs(f"{family}-lora", family, **options)
    moved = run.rename(run.with_name(f"{family}-moved"))
    again = moved.with_name(f"{family}-again")
    merge(moved, again, MergeConfig())
    one, other = load_file(moved / "merged" / "model.safetensors"), load_file(again / "model.safetensors")
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_another_tokenizer_is_refused(runs: Runs) -> None:
    run, _ = runs("bound", "rnn", merge__at_end="false")
    later = {"merge__at_end": "false", "duration__max_steps": 6, "run__extend": "true"}
    kept = (run / "base" / "tokenizer.json").read_text(encoding="utf-8")
    _, output = runs("bound", "rnn", code=64, tokenizer__vocabulary_size=280, **later)
    assert "tokenizer.vocabulary_size: 300 in the checkpoint, 280 now" in output
    assert (run / "base" / "tokenizer.json").read_text(encoding="utf-8") == kept
    (run / "base" / "tokenizer.json").write_text(kept.replace('"normalizer": null', '"normalizer": {"type":"NFC"}'))
    _, output = runs("bound", "rnn", code=64, **later)
    assert "tokenizer: digest" in output
    shutil.rmtree(run / "base")  # it is made again, as it was
    runs("bound", "rnn", **later)
    assert (run / "base" / "tokenizer.json").read_text(encoding="utf-8") == kept


def test_an_existing_tokenizer(runs: Runs) -> None:
    tiny = ROOT / "examples" / "models" / "tiny-qwen2"
    options = {"model__tokenizer": tiny, "tokenizer__vocabulary_size": 10_000, "tokenizer__kind": "bpe"}
    run, _ = runs("given", "lstm", **options)
    own = json.loads((tiny / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert json.loads((run / "merged" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"] == own
