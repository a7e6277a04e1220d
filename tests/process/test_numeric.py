"""Numbers as values: one result however it is computed, resumed to the last bit, and the same after merging."""

from __future__ import annotations

import functools
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.config import parse
from eval.distributed import Ranks
from eval.evaluation import evaluate
from tests.process.test_equalities import SPREAD, STEPS
from tests.support.compare import assert_equal, weights
from tests.support.fault_runs import Zygote, losses
from tests.support.training_runs import arguments, metrics, new_model, pretrained_stand_in
from train.checkpoint.commit import folder_of
from train.config import MergeConfig
from train.merge import source, steps
from train.merge.source import open_source
from train.merge.steps import merge
from train.merge.trained_model import trained_model
from zerotune.common.errors import UserError
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.inference.model import LanguageModel
from zerotune.models import numeric

WATCHED = ("train/loss", "train/value", "train/gradient_norm", "validation/loss", "validation/value_loss")
SENTENCES = ("The price is {} dollars.", "A trip of {} km, on 2024-01-05.", "价格是{}元，型号x2。", "It was {}°C.")


def rows(count: int = 40) -> list[dict[str, Any]]:
    draw = random.Random(0)
    values = [draw.choice([round(draw.uniform(-5, 100), 2), draw.randint(0, 10**6), 1e300, 0]) for _ in range(count)]
    return [
        {"question": draw.choice(SENTENCES).format(v) * draw.randint(1, 3), "answer": f"It is {v:,}."} for v in values
    ]


MOVED: dict[str, object] = {"duration__max_epochs": 4, "tuning__kind": "lora", "optim__epsilon": 1e-12}


class Place:
    """Runs over one small data set."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote, self.rows = folder, zygote, folder / "rows.jsonl"
        self.rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows()), encoding="utf-8")

    @functools.cached_property
    def base(self) -> Path:
        return pretrained_stand_in(self.folder / "base")

    @functools.cached_property
    def merged(self) -> Path:
        """A run with a merged folder."""
        return self.run("first", duration__max_epochs=3, merge__at_end="true")

    @functools.cached_property
    def moved(self) -> Path:
        """A run in which every weight of the numbers moves: Adam divides by the size of small gradients too."""
        return self.run("moved", **MOVED)

    @functools.cached_property
    def moved_without_copies(self) -> Path:
        """The same, where no number can be copied, so that the model's own value has gradients."""
        return self.run("moved alone", numeric__copy="false", **MOVED)

    def words(self, name: str, **options: object) -> list[str]:
        if options.get("model__init") == "pretrained":
            options = {"model__path": self.base, **options}
        return arguments(self.folder / name, self.rows, objective="numeric", **{**STEPS, **options})

    def run(self, name: str, kind: str = "single", **options: object) -> Path:
        processes = self.zygote.run(self.words(name, **options), self.folder / name, kind)
        assert set(processes.codes) == {0}, processes.output
        return self.folder / name


@pytest.fixture(scope="module")
def place(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("numeric"), zygote)


LORA = {"tuning__kind": "lora", "model__init": "pretrained"}  # the rows of <NUM> are frozen
ONE_VS_REST = {"numeric__token_loss": "one_vs_rest", "numeric__gate": 0.5, "numeric__value_space": "linear"}
SETTINGS: dict[str, dict[str, object]] = {
    "softmax": {"numeric__gate": 0.5, "validation__samples": 2, "validation__max_new_tokens": 4},
    # Linear values of 1e300 would be all of the loss.
    "one_vs_rest": ONE_VS_REST | {"numeric__weight": 1e-3, "numeric__threshold": 0.5},
    "lora": {"tuning__kind": "lora"},
    "lora of a pretrained base": LORA,
}
PAIRS = [
    ("softmax", "accumulation"), ("softmax", "ddp"), ("softmax", "zero2"), ("softmax", "zero3"),
    ("one_vs_rest", "ddp"), ("one_vs_rest", "zero3"), ("lora", "zero2"), ("lora", "zero3"),
    *(("lora of a pretrained base", kind) for kind in ("ddp", "zero2", "zero3")),
]  # fmt: skip


@pytest.fixture(scope="module")
def reference(place: Place) -> Any:
    made: dict[str, Path] = {}

    def get(settings: str) -> Path:
        if settings not in made:
            made[settings] = place.run(settings, duration__max_epochs=3, **SETTINGS[settings])
        return made[settings]

    return get


def samples(run: Path) -> dict[int, list[dict[str, str]]]:
    """What a run showed, by step."""
    files = sorted((run / "samples").glob("*.jsonl"))
    return {int(file.stem.removeprefix("step-")): [json.loads(line) for line in file.open()] for file in files}


@pytest.mark.parametrize(("settings", "kind"), PAIRS)
def test_numbers_count_the_same_however_they_are_spread(place: Place, reference: Any, settings: str, kind: str) -> None:
    options = {"batch__tokens_per_micro_batch": 128} if kind == "accumulation" else SPREAD
    other = place.run(
        f"{settings}-{kind}",
        "single" if kind == "accumulation" else kind,
        duration__max_epochs=3,
        **SETTINGS[settings],
        **options,
    )
    watched = WATCHED if settings != "one_vs_rest" else ("train/one_vs_rest", *WATCHED[1:])
    assert_equal(reference(settings), other, watched)
    if settings == "softmax":
        assert samples(other).keys() == samples(reference(settings)).keys() != {}


@pytest.mark.parametrize("options", [{}, LORA], ids=["full", "lora"])
def test_a_pack_is_what_its_rows_are(place: Place, options: dict[str, object]) -> None:
    name = "-lora" * bool(options)
    whole = options | {
        "duration__max_epochs": 3,
        "batch__tokens_per_step": 100_000,
        "batch__tokens_per_micro_batch": 4096,
    }
    packed = place.run(f"packed{name}", batch__layout="packed", **whole)
    padded = place.run(f"padded{name}", batch__layout="padded", **whole)
    assert_equal(packed, padded, WATCHED)


def test_a_stream_reads_the_same_values(place: Place) -> None:
    fixed = {"batch__shuffle": "false", "duration__max_steps": 4, "data__validation_fraction": 0}
    fixed |= {"checkpoint__every_steps": 4, "duration__max_epochs": "null"}
    streamed = place.run("streamed", data__streaming="true", **fixed)
    assert metrics(streamed, "train/value")
    again = place.run("streamed-two", "ddp", data__streaming="true", **fixed, **SPREAD)
    assert_equal(streamed, again, WATCHED[:3])


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
def test_killed_and_resumed_to_the_last_bit(place: Place, tuning: dict[str, object]) -> None:
    name = "-lora" * bool(tuning)
    options = tuning | {"checkpoint__every_steps": 2, "checkpoint__asynchronous": "false", "duration__max_epochs": 3}
    whole = place.run(f"resume-whole{name}", **options)
    orders = [{"at": "train.engine.loop:Loop._update", "nth": 4, "do": "SIGKILL"}]
    words = place.words(f"resume-cut{name}", **options)
    assert place.zygote.run(words, place.folder / f"killed{name}", orders=orders).codes == [-9]
    cut = place.run(f"resume-cut{name}", **options)
    assert losses(cut) == losses(whole)
    assert all(torch.equal(tensor, weights(cut)[name]) for name, tensor in weights(whole).items())


MERGED: dict[str, tuple[str, dict[str, object]]] = {
    "full": ("zero3", {"numeric__token_loss": "one_vs_rest"}),
    "lora": ("single", {"tuning__kind": "lora", "optim__learning_rate": 0.01}),
    "lora of a pretrained base": ("single", LORA),
    "lora of a pretrained base on shards": ("zero3", LORA),
    "lora of a base with spare rows": ("single", LORA | {"model__path": "spare"}),
    "lstm": ("single", new_model("lstm")),
}


@pytest.mark.parametrize("case", MERGED)
def test_the_merged_folder_predicts_what_the_trained_model_does(place: Place, case: str) -> None:
    kind, options = MERGED[case]
    base = place.base
    if "model__path" in options and options.get("model__init"):
        base = pretrained_stand_in(place.folder / "spare", vocab_size=base_rows(place.base) + 64)
        options = options | {"model__path": base}
    spread = SPREAD if kind != "single" else {}
    run = place.run(f"merged {case}", kind, duration__max_epochs=3, merge__at_end="true", **options, **spread)
    assert "numeric" in json.loads((run / "merged" / "config.json").read_text())
    checkpoint = open_checkpoint(str(run / "merged"), "new")
    half = cast(LanguageModel, checkpoint.load("language", "bf16", "none", torch.device("cpu"))).network.model
    assert {parameter.dtype for parameter in half.numeric.parameters()} == {torch.float32}  # values need its digits
    language_model = cast(LanguageModel, checkpoint.load("language", "fp32", "none", torch.device("cpu")))
    merged = cast(Any, language_model.network.model)
    step = json.loads((run / "merged" / "run.json").read_text())["merge"]["step"]
    trained = trained_model(open_source(folder_of(run / "checkpoints", step), "last"), torch.float32)
    ids = checkpoint.tokenizer("The price is <NUM> dollars; it is <NUM>.", return_tensors="pt")["input_ids"]
    number = checkpoint.tokenizer.convert_tokens_to_ids("<NUM>")
    assert (ids == number).sum() == 2
    inputs = {"input_ids": ids, "values": torch.where(ids == number, 42.0, 0.0).double(), "use_cache": False}
    targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    found, expected = (numeric.predictions(model, inputs, targets) for model in (merged, trained))
    torch.testing.assert_close(found.log_p_n, expected.log_p_n, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.values[:2], expected.values[:2], rtol=1e-4, atol=1e-5)
    plain = numeric.predictions(merged, {**inputs, "values": torch.zeros_like(inputs["values"])}, targets)
    assert not torch.allclose(plain.values.location_m[1:], found.values.location_m[1:])  # it read 42
    if options.get("model__init") == "pretrained":
        assert_only_the_row_of_numbers_is_new(base, merged, number)


@pytest.mark.parametrize("is_on_both_sides", [True, False])
@pytest.mark.parametrize(
    "name",
    ["direction.weight", "scale.weight", "scale.start", "value.weight", "pointer.query", "pointer.key", "pointer.own"],
)
def test_a_lost_weight_of_the_numbers_is_caught(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_on_both_sides: bool
) -> None:
    """None of these weights has an effect on the logits of a text without numbers."""
    right: Any = source.trained_weights if is_on_both_sides else steps.merged

    def wrong(*arguments: Any) -> Any:
        found = dict(right(*arguments))
        (lost,) = [own for own in found if own.endswith(f"numeric.{name}")]
        assert found[lost].any()
        found[lost] = torch.zeros_like(found[lost])
        return found if is_on_both_sides else found.items()

    run = place.moved if name.startswith("pointer") else place.moved_without_copies
    monkeypatch.setattr(*((source, "trained_weights") if is_on_both_sides else (steps, "merged")), wrong)
    with pytest.raises(UserError, match="predicts other values of numbers than the trained one"):
        merge(run, tmp_path / "merged", MergeConfig(weights="float32"))


def base_rows(base: Path) -> int:
    return int(json.loads((base / "config.json").read_text())["vocab_size"])


def assert_only_the_row_of_numbers_is_new(base: Path, merged: Any, number: int) -> None:
    digits = AutoTokenizer.from_pretrained(base)("0123456789", add_special_tokens=False)["input_ids"]
    before = AutoModelForCausalLM.from_pretrained(base)
    pairs = [(m.get_input_embeddings().weight, m.get_output_embeddings().weight) for m in (before, merged)]
    for old_vd, new_vd in zip(*pairs, strict=True):
        assert len(new_vd) == max(len(old_vd), number + 1)
        text = [token for token in range(len(old_vd)) if token != number]
        assert torch.equal(old_vd[text], new_vd[text])
        expected_d = 1.5 * old_vd[digits].mean(0) - 0.5 * old_vd.mean(0)
        torch.testing.assert_close(new_vd[number], expected_d, rtol=0.01, atol=0.002)


@pytest.mark.parametrize("settings", ["softmax", "one_vs_rest"])
def test_eval_gives_what_validation_gave(place: Place, settings: str, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(60)[40:]), encoding="utf-8")
    options = {"duration__max_epochs": 20, "optim__learning_rate": 0.005, "validation__metric": "number_recall"}
    options |= {
        "merge__at_end": "true",
        **SETTINGS[settings],
        "validation__samples": 8,
        "validation__max_new_tokens": 12,
    }
    sources = json.dumps([{"path": str(held_out), "format": "qa"}])
    run = place.run(f"eval {settings}", data__validation=sources, data__validation_fraction=0, **options)
    step = json.loads((run / "merged" / "run.json").read_text())["merge"]["step"]
    words = ["--model", str(run / "merged"), "--tasks", "numeric,perplexity,samples", "--data", str(held_out)]
    words += ["--out", str(tmp_path / "out"), "--precision", "fp32", "--max_new_tokens", "12"]
    evaluation = evaluate(parse(words), Ranks(0, 1, torch.device("cpu")))
    found = {m.name: m.estimates[0].value for task in evaluation.result.tasks for m in task.metrics}
    values = [float(row["answer"].removeprefix("It is ")[:-1].replace(",", "")) for row in rows()]
    ((table,),) = next(task for task in evaluation.result.tasks if task.name == "numeric").tables.values()
    by_name = dict(row[1].split(": ") for row in table.rows if ": " in row[1])
    assert float(by_name["mean of the training values"].replace(",", "")) == pytest.approx(
        statistics.mean(values), rel=1e-3
    )
    assert float(by_name["median of the training values"].replace(",", "")) == pytest.approx(
        statistics.median(values), rel=1e-3
    )
    (shown,) = evaluation.samples["samples"].values()
    for own, sample in zip(samples(run)[step], shown, strict=False):
        assert str(sample.shown["greedy"]).split("\n(90 %")[0] == own["answer"]
        assert own["reference"].startswith("It is ")
        assert "<NUM>" not in str(own)
    for name in ("number_recall", "number_precision", "interval_90", "value_loss"):
        assert found[name] == pytest.approx(metrics(run, f"validation/{name}")[step], rel=1e-4), name
    if settings == "softmax":
        assert found["number_recall"]
        assert found["perplexity"] == pytest.approx(metrics(run, "validation/perplexity")[step], rel=1e-4)


def test_half_precision_keeps_values_whole(place: Place) -> None:
    """Values up to 1e300 survive validation, though mixed precision turns what a model returns into float32."""
    run = place.run("bf16", duration__max_epochs=1, run__precision="bf16", merge__at_end="true")
    assert json.loads((run / "merged" / "run.json").read_text())["merge"]["values"] < 0.1
    for name in ("validation/value_loss", "validation/interval_90"):
        assert all(math.isfinite(value) for value in metrics(run, name).values()), name


@pytest.mark.parametrize("kind", ["single", "zero2", "zero3"])
def test_a_base_in_4_bit(place: Place, kind: str) -> None:
    options = LORA | {"tuning__quantization": "nf4", "merge__quantized_base": "dequantized"}
    spread = SPREAD if kind != "single" else {}
    run = place.run(f"qlora {kind}", kind, duration__max_epochs=2, merge__at_end="true", **options, **spread)
    assert json.loads((run / "merged" / "run.json").read_text())["merge"]["divergence"]["dequantized"] < 1e-6


def test_only_this_objective_trains_a_folder_with_numbers(place: Place) -> None:
    options = {"model__path": place.merged / "merged", "model__init": "pretrained"}
    words = arguments(place.folder / "second of two", place.rows, objective="causal_lm", **options)
    processes = place.zygote.run(words, place.folder / "second of two", "single")
    assert set(processes.codes) != {0}
    assert "reads numbers as values, which only objective: numeric trains" in processes.output


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_training_goes_on_from_a_folder_with_numbers(place: Place, tuning: str) -> None:
    first = place.merged
    options = {"model__path": first / "merged", "model__init": "pretrained", "optim__learning_rate": 1e-9}
    options |= {"tuning__kind": tuning, "merge__at_end": "true"}
    second = place.run(f"second {tuning}", duration__max_epochs=1, **options)
    step = json.loads((first / "merged" / "run.json").read_text())["merge"]["step"]
    for name in ("validation/loss", "validation/value_loss"):
        assert metrics(second, name)[0] == pytest.approx(metrics(first, name)[step], rel=1e-5)


def test_numbers_that_do_not_fit_are_named_by_line(place: Place) -> None:
    path = place.folder / "bad.jsonl"
    path.write_text('{"question": "q", "answer": "5"}\n{"question": "1e+400", "answer": "6"}\n', encoding="utf-8")
    sources = json.dumps([{"path": str(path), "format": "qa"}])
    processes = place.zygote.run(place.words("bad", data__train=sources), place.folder / "bad")
    assert set(processes.codes) != {0}
    assert "bad.jsonl:2: number too large: 1e+400; the largest is 1e+300" in processes.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning__kind": "prompt"}, "tuning.kind: objective numeric has no values for the positions of a tuned"),
        ({"validation__exact_match_rows": 5}, "validation.exact_match_rows: objective numeric has no exact match"),
        ({"numeric__threshold": 1}, "numeric.threshold: applies only to numeric.token_loss: one_vs_rest"),
        (
            {"numeric__token_loss": "one_vs_rest", "validation__metric": "perplexity"},
            "validation.metric: perplexity needs numeric.token_loss: softmax",
        ),
    ],
)
def test_recipes_that_contradict_themselves(place: Place, options: dict[str, object], message: str) -> None:
    processes = place.zygote.run(place.words("refused", **options), place.folder / "refused")
    assert set(processes.codes) == {64}
    assert message in processes.output
