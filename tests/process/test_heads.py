"""Objectives with a head: one result however it is computed, resumed to the last bit, and the same after merging.

Sentences have very different numbers of words, and so do micro-batches: a loss that is divided anywhere but once, by
the words of the whole step, shows here. (transformers' Trainer, same 8 samples: 1.63, 6.51 and 13.04 with accumulation
over 1, 4 and 8; transformers issue 47688.)
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.process.test_equalities import SPREAD, STEPS
from tests.support.compare import assert_equal, weights
from tests.support.fault_runs import Zygote, losses
from tests.support.training_runs import TINY, arguments, metrics, pretrained_stand_in

WORDS = ["the", "gene", "binds", "NF-kappa", "to", "细胞", "of", "unbelievably"]
TAGS = {"gene": "B-protein", "NF-kappa": "B-protein", "细胞": "B-cell_type", "unbelievably": "I-protein"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def sentences(count: int = 40) -> list[dict[str, Any]]:
    draw = random.Random(0)
    lengths = [1 + int(draw.paretovariate(0.8)) % 60 for _ in range(count)]
    drawn = [draw.choices(WORDS, k=n) for n in lengths]
    return [{"tokens": words, "tags": [TAGS.get(word, "O") for word in words]} for words in drawn]


def labelled(count: int = 48) -> list[dict[str, Any]]:
    draw = random.Random(1)
    words = {"positive": ["good", "fine", "好"], "negative": ["bad", "poor", "坏"]}
    labels = ["positive" if draw.random() < 0.25 else "negative" for _ in range(count)]
    return [
        {"sentence1": " ".join(draw.choices(words[label], k=draw.randint(1, 20))), "sentence2": "x", "label": label}
        for label in labels
    ]


def pairs(count: int = 32) -> list[dict[str, Any]]:
    draw = random.Random(2)
    return [
        {"prompt": f"Say {k}. ", "chosen": "yes " * draw.randint(1, 9), "rejected": "no " * draw.randint(1, 9)}
        for k in range(count)
    ]


DATA = {
    "token_classification": ("tagged", sentences),
    "sequence_classification": ("labelled", labelled),
    "reward_model": ("preference", pairs),
}
LOSSES = ("train/loss", "train/gradient_norm", "validation/loss")
WATCHED = {
    "token_classification": (*LOSSES, "validation/f1", "validation/token_accuracy"),
    "sequence_classification": (*LOSSES, "validation/accuracy", "validation/mcc"),
    "reward_model": (*LOSSES, "validation/accuracy", "validation/margin"),
}


def bert(folder: Path) -> Path:
    """A tiny encoder with BERT's own tokenizer, which numbers the sentences of a pair and comes back from its class."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789-.,细胞好坏")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(folder)
    return folder


class Place:
    """Runs over small data sets in one folder."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote = folder, zygote
        self.rows = {name: write(folder / f"{name}.jsonl", make()) for name, (_, make) in DATA.items()}
        self.bert = bert(folder / "bert")

    def words(self, name: str, data: str, **options: object) -> list[str]:
        rows = self.rows[data]
        chosen: dict[str, object] = {
            "objective": data,
            "data__train": json.dumps([{"path": str(rows), "format": DATA[data][0]}]),
            "batch__tokens_per_step": 512,
            "batch__tokens_per_micro_batch": 512,
            "duration__max_epochs": 3,
            "head__dropout": 0.0,  # each micro-batch draws its own
            **STEPS,
            **options,
        }
        return arguments(self.folder / name, rows, **chosen)

    def run(self, name: str, data: str, kind: str = "single", **options: object) -> Path:
        processes = self.zygote.run(self.words(name, data, **options), self.folder / name, kind)
        assert set(processes.codes) == {0}, processes.output
        return self.folder / name


@pytest.fixture(scope="module")
def place(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("heads"), zygote)


MEASURED = {
    "token_classification": ("f1", "token_accuracy"),
    "sequence_classification": ("accuracy", "mcc"),
    "reward_model": ("accuracy", "margin"),
}

CASES = {
    "accumulation": ("single", {"batch__tokens_per_micro_batch": 128}),
    "two ranks": ("ddp", SPREAD),
    "zero2": ("zero2", SPREAD),
    "zero3": ("zero3", SPREAD),
}


@pytest.mark.parametrize("case", CASES)
def test_words_count_the_same_however_they_are_spread(place: Place, case: str) -> None:
    kind, options = CASES[case]
    fixed = {"data__max_length_tokens": 128}
    reference = place.folder / "ner"
    if not reference.exists():
        place.run("ner", "token_classification", **fixed)
    assert_equal(
        reference,
        place.run(f"ner-{case}", "token_classification", kind, **fixed, **options),
        WATCHED["token_classification"],
    )


@pytest.mark.parametrize("objective", ["sequence_classification", "reward_model"])
def test_sequences_too(place: Place, objective: str) -> None:
    weighted = {"head__class_weights": "balanced"} if objective == "sequence_classification" else {}
    one = place.run(objective, objective, **weighted)
    assert_equal(one, place.run(f"{objective}-two", objective, "ddp", **weighted, **SPREAD), WATCHED[objective])
    packed = place.run(
        f"{objective}-packed", objective, batch__layout="packed", batch__tokens_per_step=100_000, **weighted
    )
    padded = place.run(
        f"{objective}-padded", objective, batch__layout="padded", batch__tokens_per_step=100_000, **weighted
    )
    assert_equal(packed, padded, WATCHED[objective])


@pytest.mark.parametrize("objective", ["token_classification", "sequence_classification"])
def test_an_encoder_packs_as_it_pads(place: Place, objective: str) -> None:
    whole = {"model__path": place.bert, "model__init": "pretrained", "batch__tokens_per_step": 100_000}
    whole |= {"batch__tokens_per_micro_batch": 4096}
    padded = place.run(f"bert-{objective}", objective, batch__layout="padded", **whole)
    if objective == "sequence_classification":  # its head reads the first token of each row
        processes = place.zygote.run(
            place.words("bert-refused", objective, batch__layout="packed", **whole), place.folder / "bert-refused"
        )
        assert set(processes.codes) != {0}
        assert "batch.layout: this model cannot separate rows that are packed into one sequence" in processes.output
        return
    assert_equal(padded, place.run("bert-packed", objective, batch__layout="packed", **whole), WATCHED[objective])


def test_the_loss_is_the_mean_over_all_words_of_the_step(place: Place) -> None:
    """Against cross entropy written out over transformers' own model, sentence by sentence."""
    from transformers import AutoModelForTokenClassification

    from tests.support.ranks import Solo
    from train.config import Config, DataConfig, ModelConfig, RunConfig, SourceConfig, TuningConfig
    from train.objectives.token_classification import TokenClassification
    from train.tuning import make_tuning

    config = Config(
        objective="token_classification",
        run=RunConfig(precision="fp32"),
        model=ModelConfig(path=str(TINY), init="random"),
        data=DataConfig(
            train=[SourceConfig(str(place.rows["token_classification"]), "tagged")],
            cache_folder=str(place.folder / "cache"),
        ),
    )
    objective = TokenClassification(config, make_tuning(TuningConfig()), Solo())
    model: Any = objective.load_model().eval()
    total = count = 0.0
    plain = AutoModelForTokenClassification.from_config(model.config)
    plain.load_state_dict(model.state_dict())
    plain.eval()
    for row in range(len(objective.rows)):
        (document,) = objective.rows.documents(row)
        gold_t = torch.tensor(document.targets_t)
        logits_tc = plain(input_ids=torch.tensor(document.ids_t).long()[None]).logits[0]
        kept = ~gold_t.isnan()
        total += F.cross_entropy(logits_tc[kept].double(), gold_t[kept].long(), reduction="sum").item()
        count += float(kept.sum())
    batches = [batch for step in objective.steps(model, 0) for batch in step]
    assert sum(batch.counts["loss"] for batch in batches) == count == sum(len(row["tokens"]) for row in sentences())
    found = sum(objective.loss(model, batch)["loss"].item() for batch in batches)
    assert found == pytest.approx(total, rel=1e-5)


def test_killed_and_resumed_to_the_last_bit(place: Place) -> None:
    options = {
        "checkpoint__every_steps": 2,
        "checkpoint__asynchronous": "false",
        "tuning__kind": "lora",
        "tuning__lora__dropout": 0.1,
    }
    whole = place.run("resume-whole", "token_classification", **options)
    orders = [{"at": "train.engine.loop:Loop._update", "nth": 4, "do": "SIGKILL"}]
    words = place.words("resume-cut", "token_classification", **options)
    assert place.zygote.run(words, place.folder / "killed", orders=orders).codes == [-9]
    cut = place.run("resume-cut", "token_classification", **options)
    assert losses(cut) == losses(whole)
    assert all(torch.equal(tensor, weights(cut)[name]) for name, tensor in weights(whole).items())


MERGED = {
    "reward_model lora": ("single", {"tuning__kind": "lora"}),
    "token_classification full": ("zero3", {}),
    "token_classification lora": ("single", {"tuning__kind": "lora"}),
    "token_classification prompt": ("single", {"tuning__kind": "prompt"}),
    "sequence_classification lora": ("zero3", {"tuning__kind": "lora"}),
    "sequence_classification prompt": ("single", {"tuning__kind": "prompt", "optim__learning_rate": 0.05}),
}


@pytest.mark.parametrize("case", MERGED)
def test_evaluation_of_the_merged_folder_gives_what_validation_gave(place: Place, case: str) -> None:
    """The folder alone says which classes there are; tokens, labels, pooling and prompt must all agree."""
    objective, tuning = case.split()
    kind, options = MERGED[case]
    held_out = write(place.folder / f"{objective}-held.jsonl", DATA[objective][1](24))
    sources = json.dumps([{"path": str(held_out), "format": DATA[objective][0]}])
    given = {"data__validation": sources, "data__validation_fraction": 0, "merge__at_end": "true"}
    if tuning == "prompt":  # of an encoder whose tokens are letters: sentences stay whole, as evaluation reads them
        given |= {"model__path": place.bert, "model__init": "pretrained", "data__max_length_tokens": 480}
    run = place.run(f"merged {case}", objective, kind, **given, **options, **(SPREAD if kind != "single" else {}))
    merged = run / "merged"
    config = json.loads((merged / "config.json").read_text())
    labels = json.loads((run / "run.json").read_text())["labels"]
    assert list(config["id2label"].values()) == (labels or ["reward"])
    results = evaluated(merged, objective, held_out, place.folder / f"eval {case}")
    best = json.loads((merged / "run.json").read_text())["merge"]["step"]
    for metric in MEASURED[objective]:
        assert results[metric] == pytest.approx(metrics(run, f"validation/{metric}")[best], abs=1e-6), metric
    assert tuning == "prompt" or results[MEASURED[objective][0]] > 0.5


def test_a_head_over_a_base_in_4_bit(place: Place) -> None:
    """The head itself is not quantised; merged into the base as training saw it, it says what validation said."""
    base = place.folder / "whole"
    if not base.exists():
        pretrained_stand_in(base)
    held_out = write(place.folder / "qlora-held.jsonl", sentences(24))
    options: dict[str, object] = {
        "data__validation": json.dumps([{"path": str(held_out), "format": "tagged"}]),
        "data__validation_fraction": 0,
        "model__path": base,
        "model__init": "pretrained",
        "tuning__kind": "lora",
        "tuning__quantization": "nf4",
        "merge__at_end": "true",
        "merge__quantized_base": "dequantized",
    }
    run = place.run("qlora", "token_classification", **options)
    merge = json.loads((run / "merged" / "run.json").read_text())["merge"]
    assert merge["divergence"]["dequantized"] < 1e-6
    results = evaluated(run / "merged", "token_classification", held_out, place.folder / "eval-qlora")
    for metric in MEASURED["token_classification"]:
        assert results[metric] == pytest.approx(metrics(run, f"validation/{metric}")[merge["step"]], abs=0.02), metric


def test_label_words_are_written_and_likely_after_merging(place: Place) -> None:
    """Trained as `sentence: ... Label: `, asked by the evaluation tasks, which are given the merged folder alone."""
    held_out = write(place.folder / "words-held.jsonl", labelled(24))
    sources = json.dumps([{"path": str(held_out), "format": "labelled"}])
    given = {"data__validation": sources, "data__validation_fraction": 0, "merge__at_end": "true"}
    given |= {"validation__exact_match_rows": 24, "validation__max_new_tokens": 6, "duration__max_epochs": 6}
    train = json.dumps([{"path": str(place.rows["sequence_classification"]), "format": "labelled"}])
    given |= {"objective": "causal_lm", "validation__metric": "exact_match", "head__dropout": "null"}
    options = {"data__train": train, **given}
    run = place.run("words", "sequence_classification", tuning__kind="lora", **options)
    best = json.loads((run / "merged" / "run.json").read_text())["merge"]["step"]
    reached = metrics(run, "validation/exact_match")[best]
    assert reached > 0.6
    written = evaluated(run / "merged", "classification_generation", held_out, place.folder / "eval-written")
    assert written["accuracy"] == pytest.approx(reached, abs=1e-9)
    likely = evaluated(run / "merged", "classification", held_out, place.folder / "eval-likely")
    assert likely["accuracy"] >= reached - 0.1


def evaluated(model: Path, task: str, data: Path, out: Path) -> dict[str, float]:
    from eval.main import main

    words = ["--model", str(model), "--tasks", task, "--data", str(data), "--out", str(out), "--precision", "fp32"]
    assert main(words) == 0
    result = json.loads((out / "result.json").read_text())
    return {metric["name"]: metric["estimates"][0]["value"] for metric in result["tasks"][0]["metrics"]}
