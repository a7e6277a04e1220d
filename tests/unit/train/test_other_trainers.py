"""The words of other trainers are understood, no suggestion misleads, and a recipe's mistakes are told together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import TypeAdapter

from train.config import Config
from train.other_trainers import COUNTERPARTS, NO_COUNTERPART, NOTES, SOURCE_KEYS, VALUES
from train.recipe import parse
from train.suggest import about_key, meant_key, parse_key
from zerotune.common.errors import UserError
from zerotune.common.schema import kind_at, leaf_keys
from zerotune.common.yaml_lines import dotted

LLAMA_FACTORY = """\
model_name_or_path: some/base
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
dataset_dir: data
template: llama3
cutoff_len: 2048
output_dir: saves
save_steps: 500
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
num_train_epochs: 3.0
lr_scheduler_type: cosine
bf16: true
optim: adamw_torch
"""
AXOLOTL = """\
base_model: some/base
load_in_4bit: true
datasets: [{path: a/b, type: alpaca}]
val_set_size: 0.1
adapter: qlora
sequence_len: 4096
sample_packing: true
lora_r: 32
lora_target_linear: true
micro_batch_size: 2
num_epochs: 4
flash_attention: true
deepspeed: zero2.json
train_on_inputs: false
wandb_project: mine
"""
SWIFT = "--model_id_or_path a/b --train_type lora --max_length 2048 --dataset a b c --attn_impl flash_attn --do_train"


def refusal(*words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse(words)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("text", [LLAMA_FACTORY, AXOLOTL], ids=["LLaMA-Factory", "axolotl"])
def test_every_key_of_another_trainers_recipe_is_answered(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    lines = refusal("--config", str(file))
    keys = text.splitlines()
    assert [line.split(": ")[0] for line in lines[: len(keys)]] == [f"{file}:{n + 1}" for n in range(len(keys))]
    assert not [line for line in lines if "--help lists all keys" in line]


def test_options_of_another_trainer_are_answered() -> None:
    lines = refusal(*SWIFT.split())
    assert [line.split()[4].strip(";:") for line in lines[:6]] == [w for w in SWIFT.split() if w.startswith("--")]
    assert lines[1].endswith("; did you mean --tuning.kind lora?")
    assert lines[4].endswith("; did you mean --model.attention flash_attention_2?")
    assert all(line.startswith("command line: unknown option") for line in lines[:6])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("base_model", "x", "; did you mean model.path?"),
        ("report_to", "x", ": not needed: metrics.jsonl and TensorBoard files"),
        ("do_train", True, ": not needed: train/main.py trains"),
        ("load_in_4bit", True, "; did you mean tuning.quantization: nf4?"),
        ("adapter", "qlora", "; did you mean tuning.kind: lora, with tuning.quantization: nf4?"),
        ("stage", "rm", "; did you mean objective: reward_model?"),
        ("epochs", 3, "; did you mean duration.max_epochs?"),
        ("per_device_train_batch_size", 3, "; did you mean batch.tokens_per_micro_batch (in tokens, not rows)?"),
        ("loss_weights", 3, "; --help lists all keys."),
        ("learning_rat", 3, "; did you mean optim.learning_rate?"),
        ("data.train[0].type", "alpaca.load_concise", "; did you mean data.train[0].format: io?"),
        ("data.train[2].type", "chat_template", "; did you mean data.train[2].format: chat?"),
        ("data.train[0].pth", "x", "; did you mean data.train[0].path?"),
        ("optm.learning_rate", 1, "; did you mean optim.learning_rate?"),
        ("chekpoint.every_steps", 1, "; did you mean checkpoint.every_steps?"),
        ("validation.evry_steps", 1, "; did you mean validation.every_steps?"),
        ("ppo.reward[0].weigt", 1, "; did you mean ppo.reward[0].weight?"),
        ("every_steps", 1, "; --help lists all keys."),
    ],
)
def test_suggestions(key: str, value: Any, said: str) -> None:
    assert about_key(parse_key(key), value, dotted).startswith(said)


def test_tables_contain_only_existing_keys_and_values() -> None:
    keys = {dotted(key) for key in leaf_keys(Config)} | {f"data.train[0].{name}" for name in SOURCE_KEYS.values()}
    for theirs, ours in COUNTERPARTS.items():
        key, _, value = ours.partition(": ")
        assert key in keys | {f"data.train[0].{field}" for field in ("fraction", "weight")}, theirs
        kind = kind_at(Config, parse_key(key))
        if value:
            TypeAdapter(kind).validate_python({"true": True, "false": False}.get(value, value), strict=True)
        assert kind_at(Config, (theirs,)) is None or theirs in ("model", "optim"), f"{theirs} is a key of ours"
    assert {key for key in NOTES if key not in keys} <= {"data.train[0].fraction", "data.train[0].weight"}
    assert not set(COUNTERPARTS) & set(NO_COUNTERPART)
    for key, values in VALUES.items():
        kind = kind_at(Config, parse_key(f"data.train[0].{key}" if key == "format" else key))
        assert get_origin(kind) is Literal
        for theirs, ours in values.items():
            assert any(ours.startswith(name) for name in get_args(kind)) or "not of the file" in ours, theirs


def test_no_trl_key_gets_a_misleading_suggestion() -> None:
    """A key that the table lacks gets no suggestion, unless it is one of ours in another section."""
    from dataclasses import fields

    trl = pytest.importorskip("trl")
    lasts = {str(key[-1]) for key in leaf_keys(Config)}
    for name in {field.name for kind in (trl.SFTConfig, trl.ModelConfig, trl.RewardConfig) for field in fields(kind)}:
        assert name in COUNTERPARTS or not meant_key((name,)) or name in lasts, (name, meant_key((name,)))


def test_all_kinds_of_errors_are_in_one_message(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "data: {train: [{path: a, format: alpaca}]}\noptim: {beta1: 2, learning_rte: 1, name: adam}\nlr: 1\n"
    )
    lines = [line.removeprefix(f"{file}:") for line in refusal("--config", str(file), "--run.sed", "1")]
    assert lines == [
        "1: data.train[0].format: expected one of chat, qa, pr, io, text, labelled, tagged, preference, got 'alpaca';"
        " did you mean io?",
        "2: optim.name: expected one of adamw, adamw_8bit, adafactor, got 'adam'; did you mean adamw?",
        "2: optim.beta1: must be less than 1, not 2.",
        "2: unknown key optim.learning_rte; did you mean optim.learning_rate?",
        "3: unknown key lr; did you mean optim.learning_rate?",
        "command line: unknown option --run.sed; did you mean --run.seed?",
        " model.path: is missing; give a folder in Hugging Face layout, a hub name, or model.family.",
    ]


def test_value_for_a_section_names_the_key() -> None:
    assert refusal("--model", "some/base")[0].endswith("; did you mean model.path?")


@pytest.mark.parametrize(
    "key", ["data.validation", "head.labels", "tuning.lora.modules_to_save", "data.train.0.columns"]
)
def test_null_clears_a_list_or_mapping(tmp_path: Path, key: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "model: {path: m}\ndata:\n  train: [{path: a, format: qa, columns: {answer: b}}]\n"
        "  validation: [{path: v, format: qa}]\n"
    )
    config = parse(["--config", str(file), f"--{key}", "null"])
    value: Any = config
    for part in key.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    assert not value


def table() -> list[str]:
    """The rows of the table in docs/recipes.md: ours with its note, and the words for it elsewhere."""
    ours = list(dict.fromkeys(COUNTERPARTS.values()))
    told = list(dict.fromkeys(NO_COUNTERPART.values()))
    by_ours = [(f"`{key}`" + (f": {NOTES[key]}" if key in NOTES else ""), COUNTERPARTS, key) for key in ours]
    rows = by_ours + [(reason, NO_COUNTERPART, reason) for reason in told]
    return [
        f"| {', '.join(f'`{theirs}`' for theirs in words if words[theirs] == wanted)} | {shown} |"
        for shown, words, wanted in rows
    ]


def test_the_documentation_has_the_same_table() -> None:
    documented = (Path(__file__).resolve().parents[3] / "docs" / "recipes.md").read_text().splitlines()
    assert [row for row in table() if row not in documented] == []
