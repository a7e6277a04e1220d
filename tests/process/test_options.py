"""Options that no recipe uses, through the whole program: each does what its help says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.fault_runs import Zygote, finished, losses, status
from tests.support.training_runs import arguments, metrics, pretrained_stand_in, write_rows


class Place:
    """Runs over one small data set."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote, self.rows = folder, zygote, write_rows(folder)

    def run(self, name: str, orders: list[dict[str, Any]] | None = None, **options: object) -> Path:
        """The run folder of a run of six steps that ended well. `options` use __ for the dot."""
        run = self.folder / name
        words = arguments(run, self.rows, **{"duration__max_epochs": 99, "duration__max_steps": 6, **options})
        processes = self.zygote.run(words, self.folder / name, orders=orders)
        assert processes.codes == [0], processes.output
        return run


@pytest.fixture
def place(zygote: Zygote, tmp_path: Path) -> Place:
    return Place(tmp_path, zygote)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained_stand_in(tmp_path_factory.mktemp("base") / "model")


def optimizer(run: Path, step: int = 6) -> tuple[str, dict[str, torch.Tensor]]:
    """Class of the optimizer in a checkpoint, and its tensors."""
    checkpoint = run / "checkpoints" / f"step-{step:06d}"
    named = json.loads((checkpoint / "optimizer.json").read_text())["optimizer"]
    return named, load_file(checkpoint / "optimizer.safetensors")


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_learns_in_bf16_and_merges(place: Place, base: Path, quantization: str) -> None:
    options = {"model__path": base, "model__init": "pretrained", "tuning__kind": "lora", "run__precision": "bf16"}
    learn = {"optim__learning_rate": 1e-2, "merge__at_end": "true", "merge__quantized_base": "dequantized"}
    run = place.run(quantization, tuning__quantization=quantization, **options, **learn)
    curve = list(losses(run).values())
    assert curve[-1] < curve[0] - 0.1
    facts = json.loads((run / "merged" / "run.json").read_text())
    assert facts["precision"] == "bf16"
    assert facts["merge"]["quantized_base"] == "dequantized"
    assert set(facts["merge"]["divergence"]) == {"original", "dequantized"}


def test_recomputed_activations_change_no_loss(place: Place) -> None:
    seen = place.folder / "recomputed"
    spy = [{"at": "torch.utils.checkpoint:_checkpoint_without_reentrant_generator", "do": f"touch {seen}"}]
    options = {"tuning__kind": "lora", "tuning__lora__dropout": 0.1}
    plain = place.run("plain", spy, **options)
    assert not seen.exists()
    recomputed = place.run("recomputed-run", spy, model__gradient_checkpointing="true", **options)
    assert seen.exists()
    assert losses(recomputed) == losses(plain)


@pytest.mark.parametrize(("name", "stored"), [("adamw_8bit", "AdamW8bit"), ("adafactor", "Adafactor")])
def test_other_optimizers_learn(place: Place, name: str, stored: str) -> None:
    run = place.run(name, optim__name=name, optim__learning_rate=1e-2, duration__max_steps=12)
    kind, tensors = optimizer(run, 12)
    assert kind == stored
    whole = sum(
        tensor.numel() for tensor in load_file(run / "checkpoints" / "step-000012" / "model.safetensors").values()
    )
    assert sum(tensor.nbytes for tensor in tensors.values()) < whole * 4  # AdamW's moments take twice as much
    curve = list(losses(run).values())
    assert curve[-1] < curve[0] - 0.3


def test_bf16_on_a_cpu_follows_fp32(place: Place) -> None:
    options = {"optim__learning_rate": 1e-3, "duration__max_steps": 4}
    whole, half = (place.run(precision, run__precision=precision, **options) for precision in ("fp32", "bf16"))
    assert losses(half) != losses(whole)
    assert losses(half) == pytest.approx(losses(whole), rel=5e-3)
    assert json.loads((half / "run.json").read_text())["precision"] == "bf16"


# Steps 1 to 6 with one step of warmup, as shares of the highest rate; cos(pi k / 5) for k = 0 ... 4.
SCHEDULES = {
    "constant": [1, 1, 1, 1, 1, 1],
    "linear": [1, 1, 0.8, 0.6, 0.4, 0.2],
    "cosine": [1, 1, 0.9045085, 0.6545085, 0.3454915, 0.0954915],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(place: Place, schedule: str) -> None:
    options = {"optim__schedule": schedule, "optim__warmup_steps": 1, "optim__learning_rate": 2e-3}
    run = place.run(schedule, **options, validation__at_start="false")
    expected = {step: 2e-3 * share for step, share in enumerate(SCHEDULES[schedule], start=1)}
    assert metrics(run, "train/learning_rate") == pytest.approx(expected, rel=1e-6)


def test_patience_ends_the_run_and_the_best_checkpoint_is_kept(place: Place) -> None:
    """With a learning rate of 0 no validation is better than the first."""
    options = {"validation__every_steps": 2, "validation__patience": 3, "checkpoint__every_steps": 2}
    run = place.run("patient", optim__learning_rate=0.0, duration__max_steps=40, checkpoint__keep_last=1, **options)
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["ended"] == "no better loss in 3 validations"
    assert "| Ended | no better loss in 3 validations |" in (run / "report.md").read_text(encoding="utf-8")
    assert list(metrics(run, "validation/loss")) == [0, 2, 4, 6, 8]
    assert finished(run) == [8]  # of equal ones the last is the best
    said = status(run)
    assert (said["state"], said["step"]) == ("finished", 8)
    assert said["reason"] == "no better loss in 3 validations"


def test_an_unknown_metric_is_refused_before_anything_is_made(zygote: Zygote, tmp_path: Path) -> None:
    words = arguments(tmp_path / "run", write_rows(tmp_path), validation__metric="f1")
    processes = zygote.run(words, tmp_path / "log")
    assert processes.codes == [64], processes.output
    assert "validation.metric: causal_lm has no f1; it has loss, perplexity, exact_match" in processes.output
    assert not (tmp_path / "run").exists()


def test_without_keep_best_only_the_last_are_kept(place: Place) -> None:
    options = {"validation__every_steps": 2, "checkpoint__every_steps": 2, "checkpoint__keep_last": 2}
    run = place.run("last", optim__learning_rate=0.0, checkpoint__keep_best="false", **options)
    assert finished(run) == [4, 6]


def test_answers_are_generated_and_choose_the_best_checkpoint(place: Place) -> None:
    """Every answer is one word, which some steps teach: exact match rises from 0 to 1."""
    rows = [{"question": f"Is {number} a number?", "answer": "Yes."} for number in range(60)]
    place.rows.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"exact_match_rows": 4, "metric": "exact_match", "every_steps": 15, "max_new_tokens": 4, "patience": 1}
    chosen = {f"validation__{name}": value for name, value in options.items()}
    run = place.run("asked", optim__learning_rate=1e-2, duration__max_steps=90, **chosen)
    matches = metrics(run, "validation/exact_match")
    assert matches[0] == 0.0
    assert max(matches.values()) == 1.0
    whole = [step for step, match in matches.items() if match == 1.0]
    assert list(matches)[-1] <= whole[0] + 15  # nothing can be better than 1, so that patience ends it
    losses = metrics(run, "validation/loss")
    best = min(whole, key=losses.__getitem__)  # of equally good ones the one with the lowest loss
    state = json.loads((run / "checkpoints" / f"step-{best:06d}" / "state.json").read_text())
    assert state["best_step"] == best
    assert state["best_value"] == 1.0
