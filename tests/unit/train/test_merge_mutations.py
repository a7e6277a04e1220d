"""Every step of a merge is broken on purpose, and each time the merge must be refused.

Most faults are put where both get them: the merged model, and the one that the merge rebuilds to compare it with. Then
only the answers that were recorded in training can tell: without these the merge would be certified.
"""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from tests.support import quantized_bases
from tests.support.tuned_runs import finished_run, tiny_model, tiny_tokenizer
from train.config import LoraConfig, MergeConfig, PromptConfig, TuningConfig
from train.merge import base_weights as merge_base
from train.merge import source, steps, weights
from train.merge.prompt_tokens import VECTORS
from train.merge.steps import merge
from zerotune.common.errors import UserError

FLOAT32 = MergeConfig(weights="float32")


def lora(**options):
    return TuningConfig(kind="lora", lora=LoraConfig(rank=4, **options))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each run once, made right; merged right too, so that a refusal is the fault's."""
    place = tmp_path_factory.mktemp("runs")
    made = {}

    def gpt2():
        torch.manual_seed(0)
        sizes = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 300}
        model = AutoModelForCausalLM.from_config(GPT2Config(**sizes))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.15)
        model.save_pretrained(place / "gpt2")
        tiny_tokenizer(place / "gpt2")
        return place / "gpt2"

    def larger():
        tiny_tokenizer(place / "larger", 310)
        return place / "larger"

    recipes = {
        "full": lambda: (tiny_model(place / "llama", "llama"), TuningConfig(), {}),
        "lora": lambda: (tiny_model(place / "llama-lora", "llama"), lora(), {}),
        "rslora": lambda: (tiny_model(place / "llama-rslora", "llama"), lora(rslora=True), {}),
        "biases": lambda: (tiny_model(place / "qwen2", "qwen2"), lora(bias="all"), {}),
        "saved": lambda: (tiny_model(place / "saved", "llama"), lora(modules_to_save=["lm_head"]), {}),
        "prompt": lambda: (
            tiny_model(place / "p", "qwen2"),
            TuningConfig(kind="prompt", prompt=PromptConfig(virtual_tokens=4)),
            {},
        ),
        "extended": lambda: (tiny_model(place / "small", "llama"), lora(), {"tokenizer": larger()}),
        "conv1d": lambda: (gpt2(), lora(targets=["attn.c_proj"]), {}),
        "bf16": lambda: (tiny_model(place / "bf16", "qwen2", "bfloat16"), lora(), {"dtype": "bfloat16"}),
        "fp8": lambda: (quantized_bases.make("fp8", place / "fp8")[0], lora(), {}),
        "mxfp4": lambda: (quantized_bases.make("gpt-oss mxfp4", place / "mxfp4")[0], lora(), {}),
    }

    def make(name):
        if name not in made:
            (place / name).mkdir(exist_ok=True)
            folder, tuning, options = recipes[name]()
            finished_run(place / f"run-{name}", folder, tuning, **options)
            report = merge(place / f"run-{name}", place / f"right-{name}", FLOAT32)
            assert report.recorded is not None
            assert report.recorded.relative < (0.1 if name == "bf16" else 1e-4)
            assert report.recorded.share == pytest.approx(1, abs=0.1 if name == "bf16" else 1e-3)
            made[name] = place / f"run-{name}"
        return made[name]

    return make


def change_trained(change):
    """What is read of the checkpoint, the same for both sides."""

    def fault(monkeypatch):
        right = source.trained_weights

        def wrong(folder):
            found = {name: tensor.clone() for name, tensor in right(folder).items()}
            before = {name: tensor.clone() for name, tensor in found.items()}
            change(found)
            assert any(not torch.equal(found[name], before[name]) for name in found), "the fault changes nothing"
            return found

        monkeypatch.setattr(source, "trained_weights", wrong)

    return fault


def change_recipe(**options):
    def fault(monkeypatch):
        right = source.recipe.load

        def wrong(path):
            config = right(path)
            changed = dataclasses.replace(config.tuning.lora, **options)
            return dataclasses.replace(config, tuning=dataclasses.replace(config.tuning, lora=changed))

        monkeypatch.setattr(source.recipe, "load", wrong)

    return fault


def change_base(change):
    """What is read of the base, by the merge and by the model it compares with."""

    def fault(monkeypatch):
        from train.merge import trained_model

        right, get = trained_model.load_model, merge_base.FileWeights.get

        def wrong_model(*arguments, **options):
            model = right(*arguments, **options)
            with torch.no_grad():
                own = model.state_dict()
                before = {name: tensor.clone() for name, tensor in own.items()}
                for name in own:
                    own[name].copy_(change(name, before.__getitem__))
            return model

        def wrong_file(self, name):
            return change(name, lambda other: get(self, other))

        monkeypatch.setattr(trained_model, "load_model", wrong_model)
        monkeypatch.setattr(steps, "load_model", wrong_model)
        monkeypatch.setattr(merge_base.FileWeights, "get", wrong_file)

    return fault


def swap_layers(found):
    for name in [name for name in found if "layers.0." in name]:
        other = name.replace("layers.0.", "layers.1.")
        found[name], found[other] = found[other], found[name]


def swapped(name, get):
    pair = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
    mark = next((mark for mark in pair if mark in name), None)
    return get(name.replace(mark, pair[mark])) if mark else get(name)


# What each does in place, to the parts of a name.
def zero(part):
    def change(found):
        for name in found:
            if part in name:
                found[name].zero_()

    return change


def head_is_embedding(found):
    found["lm_head.weight"].copy_(found["model.embed_tokens.weight"])


def new_rows_lost(found):
    for tensor in found.values():
        if tensor.shape[0] == 310:
            tensor[300:] = tensor[:300].mean(0)


def no_scales(monkeypatch):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    def raw(self, quantized, scales, output_dtype=None):
        return quantized.to(output_dtype or torch.float32)

    monkeypatch.setattr(Fp8Dequantize, "_dequantize_one", raw)


def no_exponents(monkeypatch):
    from transformers.integrations import mxfp4

    right = mxfp4.dequantize_convertops
    monkeypatch.setattr(
        mxfp4, "dequantize_convertops", lambda blocks, scales, dtype: right(blocks, torch.full_like(scales, 127), dtype)
    )


def transposed(monkeypatch):
    """The update of a Conv1D, put on without being turned."""
    from peft.tuners.lora import layer

    monkeypatch.setattr(layer, "transpose", lambda weight, turned: weight)


def scaled_in_merge(factor):
    def fault(monkeypatch):
        right = weights.Adapter._merge

        def wrong(self, name, path, layer):
            layer.scaling["default"] *= factor
            try:
                return right(self, name, path, layer)
            finally:
                layer.scaling["default"] /= factor

        monkeypatch.setattr(weights.Adapter, "_merge", wrong)

    return fault


def first_update_lost(monkeypatch):
    right = weights.Adapter._merge

    def wrong(self, name, path, layer):
        merged = right(self, name, path, layer)
        return self.base.get(name).float() if "layers.0.self_attn.q_proj" in name else merged

    monkeypatch.setattr(weights.Adapter, "_merge", wrong)


# fault: (run, what is broken, whether both sides of the old comparison have it)
FAULTS = {
    "alpha": ("lora", change_recipe(alpha=64), True),
    "no alpha": ("lora", change_recipe(alpha=1), True),
    "rslora taken for lora": ("rslora", change_recipe(rslora=False), True),
    "alpha, in bf16": ("bf16", change_recipe(alpha=64), True),
    "no alpha, in bf16": ("bf16", change_recipe(alpha=4), True),
    "adapter lost, in bf16": ("bf16", change_trained(zero("lora_B")), True),
    "scaling in the merge alone": ("lora", scaled_in_merge(2.0), False),
    "one update lost": ("lora", first_update_lost, False),
    "updates of two layers swapped": ("lora", change_trained(swap_layers), True),
    "layers of the base swapped": ("lora", change_base(swapped), True),
    "layers swapped": ("full", change_trained(swap_layers), True),
    "a bias lost": ("biases", change_trained(zero("layers.0.self_attn.q_proj.base_layer.bias")), True),
    "adapter lost": ("lora", change_trained(zero("lora_B")), True),
    "head is the embedding": ("full", change_trained(head_is_embedding), True),
    "saved head lost": ("saved", change_trained(zero("lm_head")), True),
    "prompt lost": ("prompt", change_trained(zero(VECTORS)), True),
    "new rows lost": ("extended", change_trained(new_rows_lost), True),
    "base in 8 bit": ("lora", change_base(lambda name, get: get(name).to(torch.float8_e4m3fn).float()), True),
    "base in 16 bit": ("lora", change_base(lambda name, get: get(name).bfloat16().float()), True),
    "update of a Conv1D not turned": ("conv1d", transposed, False),
    "scales of FP8 lost": ("fp8", no_scales, True),
    "exponents of MXFP4 lost": ("mxfp4", no_exponents, True),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_caught(runs, tmp_path, monkeypatch, name):
    run, fault, is_on_both_sides = FAULTS[name]
    folder = runs(run)
    fault(monkeypatch)
    with pytest.raises(UserError, match="recorded in training" if is_on_both_sides else "trained one"):
        merge(folder, tmp_path / "merged", FLOAT32)
    assert not (tmp_path / "merged").exists()
    if is_on_both_sides:  # blind: without what was recorded nothing would have told
        monkeypatch.setattr(steps, "read_answers", lambda folder: None)
        report = merge(folder, tmp_path / "blind", FLOAT32)
        assert any("no answers recorded" in line for line in report.lines())


def test_another_tokenizer_is_caught(runs, tmp_path):
    """The run's own was changed after training: both of the merge's sides would read with it."""
    folder = tmp_path / "run"
    shutil.copytree(runs("lora"), folder)
    path = folder / "tokenizer" / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = described["model"]["vocab"]
    vocabulary["t"], vocabulary["e"] = vocabulary["e"], vocabulary["t"]
    path.write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(UserError, match="gives other tokens than in training"):
        merge(folder, tmp_path / "merged", FLOAT32)
