"""Quantised base checkpoints: read as what they stand for, trained and merged, or refused in one message."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from tests.support import quantized_bases
from tests.support.quantized_bases import set_config
from tests.support.tuned_runs import finished_run, tiny_model
from train.config import LoraConfig, MergeConfig, ModelConfig, PromptConfig, TuningConfig
from train.merge.steps import merge
from train.models.load import load_model, skeleton
from train.tuning import make_tuning
from zerotune.common.errors import UserError
from zerotune.inference.checkpoint import open_checkpoint
from zerotune.models.dequantize import DEQUANTIZED, require_no_packed

IDS = torch.randint(0, 290, (2, 24), generator=torch.Generator().manual_seed(5))
LORA = TuningConfig(kind="lora", lora=LoraConfig(rank=4))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each kind once: (folder, plain folder of the weights that it stands for)."""
    found = {}

    def make(kind):
        if kind not in found:
            folder, meant = quantized_bases.make(kind, tmp_path_factory.mktemp(kind.replace(" ", "-")))
            plain = folder.with_name("meant")
            shutil.copytree(folder, plain)
            save_file(
                {k: v.float().contiguous() for k, v in meant.items()}, plain / "model.safetensors", {"format": "pt"}
            )
            set_config(plain, quantization_config=None)
            found[kind] = folder, plain
        return found[kind]

    return make


@torch.no_grad()
def answers(model):
    return model.eval()(IDS).logits


@pytest.mark.parametrize("kind", quantized_bases.KINDS)
def test_loaded_weights_are_those_that_are_meant(made, kind, caplog):
    folder, plain = made(kind)
    with caplog.at_level(logging.INFO):
        model = load_model(AutoModelForCausalLM, ModelConfig(path=str(folder)), torch.float32)
    meant = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    own, other = model.state_dict(), meant.state_dict()
    assert set(own) == set(other)
    for name, tensor in own.items():
        assert tensor.dtype == torch.float32, name
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6, msg=name)
    torch.testing.assert_close(answers(model), answers(meant), rtol=1e-4, atol=1e-4)
    assert not hasattr(model.config, "quantization_config")
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("tuning", ["lora", "full", "prompt"])
@pytest.mark.parametrize("kind", ["fp8 ragged", "experts fp8", "gpt-oss mxfp4", "4 bit", "8 bit"])
def test_merged_into_the_dequantised_base(made, tmp_path, kind, tuning):
    folder, _ = made(kind)
    chosen = {
        "lora": LORA,
        "full": TuningConfig(),
        "prompt": TuningConfig(kind="prompt", prompt=PromptConfig(virtual_tokens=3)),
    }[tuning]
    tuned = finished_run(tmp_path / "run", folder, chosen)
    report = merge(tmp_path / "run", tmp_path / "merged", MergeConfig(weights="float32"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    start = torch.tensor(report.prompt_tokens, dtype=torch.long).expand(len(IDS), -1)
    with torch.no_grad():
        found = merged(torch.cat([start, IDS], 1)).logits[:, -IDS.shape[1] :, :300]
        expected = tuned(input_ids=IDS).logits[:, -IDS.shape[1] :]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    if tuning != "full":
        assert any("quantised" in line for line in report.lines())
        assert json.loads((tmp_path / "merged" / "run.json").read_text())["merge"]["dequantized_from"]


@pytest.mark.parametrize("kind", ["fp8", "experts fp8", "gpt-oss mxfp4", "4 bit in part", "8 bit"])
def test_a_body_without_its_head_is_read_alike(made, kind):
    folder, plain = made(kind)
    body = load_model(AutoModel, ModelConfig(path=str(folder)), torch.float32, new=["value_head"])
    meant = AutoModel.from_pretrained(plain, dtype=torch.float32)
    with torch.no_grad():
        found, expected = body.eval()(IDS).last_hidden_state, meant.eval()(IDS).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_class_head_on_a_4_bit_body_is_new_and_plain(made):
    model = load_model(
        AutoModelForSequenceClassification,
        ModelConfig(path=str(made("4 bit")[0])),
        torch.float32,
        options={"num_labels": 3},
        new=["score"],
    )
    assert type(model.score) is torch.nn.Linear
    assert model.newly_initialized == ["score"]


OTHERS = sorted({*AUTO_QUANTIZATION_CONFIG_MAPPING, "modelopt", "", "made-up"} - set(DEQUANTIZED))


@pytest.mark.parametrize("method", [m for m in OTHERS if not m.startswith("bitsandbytes")])
def test_every_other_method_is_refused_before_anything_is_read(tmp_path, method):
    folder = tiny_model(tmp_path / "base", "llama")
    set_config(folder, quantization_config={"quant_method": method, "bits": 4})
    for start in (
        lambda: skeleton(AutoModelForCausalLM, ModelConfig(path=str(folder))),
        lambda: load_model(AutoModelForCausalLM, ModelConfig(path=str(folder)), torch.float32),
        lambda: open_checkpoint(str(folder), "base"),
    ):
        with pytest.raises(UserError, match="quantis") as caught:
            start()
        assert "16-bit model" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["fp8", "gpt-oss mxfp4", "4 bit"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_no_quantisation_on_a_quantised_base(made, kind, quantization):
    config = TuningConfig(kind="lora", quantization=quantization)
    with pytest.raises(UserError, match=r"tuning\.quantization"):
        make_tuning(config, model=ModelConfig(path=str(made(kind)[0])))


@pytest.mark.parametrize("kind", quantized_bases.KINDS)
def test_evaluated_as_what_it_stands_for(made, kind):
    folder, plain = made(kind)
    model = open_checkpoint(str(folder), "base").load("language", "fp32", "none", torch.device("cpu")).network.model
    meant = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    torch.testing.assert_close(answers(model), answers(meant), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="--quantization"):
        open_checkpoint(str(folder), "base").load("language", "fp32", "nf4", torch.device("cpu"))


@pytest.mark.parametrize("kind", ["fp8", "gpt-oss mxfp4", "4 bit", "8 bit"])
def test_a_config_that_lost_its_quantisation_is_noticed(made, tmp_path, kind):
    shutil.copytree(made(kind)[0], tmp_path / "base")
    set_config(tmp_path / "base", quantization_config=None)
    with pytest.raises(UserError, match="quantization_config"):
        load_model(AutoModelForCausalLM, ModelConfig(path=str(tmp_path / "base")), torch.float32)
    with pytest.raises(UserError, match="quantization_config"):
        open_checkpoint(str(tmp_path / "base"), "base").load("language", "fp32", "none", torch.device("cpu"))


@pytest.mark.parametrize("kind", ["fp8", "gpt-oss mxfp4"])
def test_a_lost_scale_is_noticed(made, tmp_path, kind):
    shutil.copytree(made(kind)[0], tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    lost = next(name for name in weights if name.endswith(("_scale_inv", "_scales")))
    del weights[lost]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"scale|missing"):
        load_model(AutoModelForCausalLM, ModelConfig(path=str(tmp_path / "base")), torch.float32)


def test_scales_that_a_model_learns_are_no_quantisation(tmp_path):
    """Of the parts of a larger model that a text model leaves out (CLIP's, Gemma's audio tower)."""
    weights = {name: torch.ones(2) for name in ("logit_scale", "audio.attn.per_dim_scale", "body.weight")}
    save_file(weights | {"body.weight_scale": torch.ones(1)}, tmp_path / "model.safetensors")
    require_no_packed(tmp_path, ["logit_scale", "audio.attn.per_dim_scale"])
    with pytest.raises(UserError, match=r"body\.weight_scale \(1 such\) belongs to quantised weights"):
        require_no_packed(tmp_path, ["logit_scale", "body.weight_scale"])
