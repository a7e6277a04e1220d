"""Every training recipe, run to its end: the stand-ins of recipes/cpu.yaml, and everything else as it stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.support.fault_runs import Zygote, finished, losses, status
from tests.support.training_runs import ROOT, metrics, pretrained_stand_in
from train.recipe import load
from zerotune.models.run_facts import read_run_facts

CPU = ROOT / "recipes" / "cpu.yaml"
ALL = sorted((ROOT / "recipes").glob("*.yaml"))
PPO = [("ppo-imdb", "single"), ("ppo-imdb-full", "zero2"), ("ppo-imdb-full", "zero3"), ("ppo-gsm8k", "single")]
RECIPES = [path for path in ALL if path != CPU and path.stem not in dict(PPO)]
STEPS = 6  # of recipes/cpu.yaml


def run_recipe(recipe: Path, folder: Path, zygote: Zygote, kind: str = "single", **options: object) -> Path:
    """The run folder of a run that ended well."""
    chosen = {"run.folder": folder / "run", "data.cache_folder": folder / "cache", **options}
    words = ["--config", str(recipe), "--config", str(CPU)]
    words += [word for name, value in chosen.items() for word in (f"--{name}", str(value))]
    processes = zygote.run(words, folder / "log", kind)
    assert set(processes.codes) == {0}, processes.output
    return folder / "run"


def assert_complete(run: Path) -> None:
    """Every step, validation and checkpoint, a merged model whose weights are numbers, a report with its pictures."""
    assert status(run)["state"] == "finished"
    lost = losses(run) or metrics(run, "train/one_vs_rest")
    assert list(lost) == list(range(1, STEPS + 1))
    assert len(set(lost.values())) == STEPS
    assert list(metrics(run, "validation/loss")) == [0, 3, 6]
    assert finished(run)[-1] == STEPS
    merged = run / "merged"
    template = [] if load(run / "config.yaml").model.family else ["chat_template.jinja"]
    for name in ("config.json", "tokenizer.json", "run.json", *template):
        assert (merged / name).is_file(), name
    weights = load_file(merged / "model.safetensors")
    assert all(tensor.numel() and tensor.isfinite().all() for tensor in weights.values())
    origin, parameters = read_run_facts(merged), json.loads((run / "run.json").read_text())["parameters"]
    assert origin is not None, "an evaluation says how the model was trained"
    assert (origin.trained, origin.total) == (parameters["trained"], parameters["total"])
    assert origin.step in (3, STEPS)
    report = (run / "report.md").read_text(encoding="utf-8")
    assert "before → after: " in report
    assert "loss " in report.partition("before → after: ")[2].partition("**")[0]
    assert "(peak: measured matrix product)" in report
    assert "| Checked | the merged model answers as the " in report
    for picture in ("loss", "learning", "speed"):
        assert f"](report/{picture}.png)" in report
        assert (run / "report" / f"{picture}.png").stat().st_size > 5000


def assert_documented(run: Path) -> None:
    """Every name in run.json, status.json and metrics.jsonl stands in the guides."""
    said = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("watching.md", "resume.md"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    objects = [json.loads((run / name).read_text(encoding="utf-8")) for name in ("run.json", "status.json")]
    names = {name for entry in [*objects, *lines] for name in entry}
    assert len(names) > 30
    assert not {name for name in names if f"`{name}`" not in said and f'"{name}"' not in said}


def test_there_is_something_to_run() -> None:
    assert len(RECIPES) == 15


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem != "qlora"], ids=lambda path: path.stem)
def test_to_a_merged_folder_and_a_report(recipe: Path, zygote: Zygote, tmp_path: Path) -> None:
    run = run_recipe(recipe, tmp_path, zygote)
    assert_complete(run)
    assert_documented(run)


def test_qlora_over_weights_in_4_bit(zygote: Zygote, tmp_path: Path) -> None:
    """recipes/cpu.yaml takes the quantisation away, since random weights cannot be quantised; here they are given."""
    base = pretrained_stand_in(tmp_path / "base")
    options = {"model.path": base, "model.init": "pretrained", "tuning.quantization": "nf4"}
    run = run_recipe(ROOT / "recipes" / "qlora.yaml", tmp_path, zygote, **options)
    assert_complete(run)
    checkpoint = run / "checkpoints" / f"step-{STEPS:06d}"
    assert json.loads((checkpoint / "optimizer.json").read_text())["optimizer"] == "AdamW8bit"
    moments = load_file(checkpoint / "optimizer.safetensors")
    assert any(name.endswith("/state1") and str(moment.dtype) == "torch.uint8" for name, moment in moments.items())
    assert "KL from the trained quantised model, to which all metrics above belong, by base: original " in (
        run / "report.md"
    ).read_text(encoding="utf-8")
    merge = json.loads((run / "merged" / "run.json").read_text())["merge"]
    assert merge["quantized_base"] == "original"
    assert merge["divergence"]["dequantized"] < 1e-6 < merge["divergence"]["original"] < 0.1  # nats


@pytest.mark.parametrize(("name", "kind"), PPO)
def test_ppo_to_a_merged_folder_and_a_report(name: str, kind: str, zygote: Zygote, tmp_path: Path) -> None:
    """recipes/cpu.yaml rewards without the classifier, which would have to be trained; a task's score is at hand."""
    recipe = ROOT / "recipes" / f"{name}.yaml"
    reward = yaml.safe_load(recipe.read_text(encoding="utf-8"))["ppo"]["reward"]
    own = {"ppo.reward": json.dumps(reward)} if name == "ppo-gsm8k" else {}
    run = run_recipe(recipe, tmp_path, zygote, kind, **own)
    assert status(run)["state"] == "finished"
    assert list(metrics(run, "rollout/reward")) == [1, 4]
    assert list(metrics(run, "ppo/clip_fraction")) == [3, 6]
    assert list(metrics(run, "validation/reward")) == [0, 3, 6]
    if own:
        for what in ("rollout", "validation"):
            correct, unfinished = (metrics(run, f"{what}/reward_{part}") for part in ("correct", "unfinished"))
            expected = {step: correct[step] - 0.5 * unfinished[step] for step in correct}
            assert metrics(run, f"{what}/reward") == pytest.approx(expected)
    assert finished(run)[-1] == STEPS
    weights = load_file(run / "merged" / "model.safetensors")
    assert not [name for name in weights if "value_head" in name]
    samples = [json.loads(line) for line in (run / "samples" / "step-000006.jsonl").read_text("utf-8").splitlines()]
    assert [sample["held_out"] for sample in samples] == [True, True, False, False]
    report = (run / "report.md").read_text(encoding="utf-8")
    assert "reward" in report.partition("before → after: ")[2].partition("**")[0]
    assert "| prompt | before | reward | after | reward |" in report
    for picture in ("reward", "answers"):
        assert f"](report/{picture}.png)" in report
        assert (run / "report" / f"{picture}.png").stat().st_size > 5000
