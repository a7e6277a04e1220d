"""Which weights move: what is trained, in which precision, from which start, and what is refused."""

from __future__ import annotations

import json
import logging
import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, FalconH1Config, MambaConfig

from tests.support.tuned_runs import disturb, tiny_model, tiny_tokenizer
from train.config import LoraConfig, ModelConfig, PromptConfig, TuningConfig
from train.merge.base_weights import dequantized
from train.merge.trained_model import copy_dequantized
from train.models.load import fit_vocabulary, load_model, load_tokenizer, seeded
from train.registry import TUNINGS
from train.tuning import make_tuning, share_trained
from zerotune.common.errors import UserError

IDS = torch.arange(24).reshape(2, 12) % 300
ADAPTERS = ("lora_A", "lora_B", "lora_magnitude_vector")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("qwen2"), "qwen2")


def lora(quantization="none", **options):
    return TuningConfig(kind="lora", quantization=quantization, lora=LoraConfig(rank=4, **options))


def prompt(**options):
    return TuningConfig(kind="prompt", prompt=PromptConfig(**options))


def tuned(folder, config, dtype=torch.float32, seed=3, prepare=lambda model: None):
    described = ModelConfig(path=str(folder))
    tuning = make_tuning(config, seed, model=described)
    model = load_model(AutoModelForCausalLM, described, dtype, options=tuning.load_options(dtype))
    prepare(model)
    return tuning.apply(model)


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model):
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: p.grad for name, p in trained(model).items()}


def test_full_trains_everything(qwen2):
    model = tuned(qwen2, TuningConfig())
    assert all(p.requires_grad for p in model.parameters())
    count = sum(p.numel() for p in model.parameters())  # the tied matrix once
    assert share_trained(model) == (count, count)


def test_lora_trains_its_adapters_alone_and_starts_from_the_base(llama):
    plain = load_model(AutoModelForCausalLM, ModelConfig(path=str(llama)), torch.float32)
    for options in ({}, {"dora": True}, {"rslora": True}):
        model = tuned(llama, lora(**options))
        assert all(any(part in name for part in ADAPTERS) for name in trained(model))
        assert len({name for name in trained(model) if "lora_A" in name}) == 14  # every linear layer but the head
        torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=0, atol=2e-5)
        first = gradients(model)
        assert all((g.abs().sum() > 0) == ("lora_A" not in name) for name, g in first.items())  # behind B, which is 0
        disturb(model)
        model.zero_grad()
        assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients(model).values())


def test_share_of_lora(llama):
    model = tuned(llama, lora(targets=["q_proj", "down_proj"]))
    adapters = 2 * 4 * ((32 + 32) + (48 + 32))
    total = sum(
        p.numel() for p in load_model(AutoModelForCausalLM, ModelConfig(path=str(llama)), torch.float32).parameters()
    )
    assert share_trained(model) == (adapters, total + adapters)


def test_share_of_sharded_and_quantised_parameters(llama):
    model = tuned(llama, TuningConfig())
    first = next(model.parameters())
    share = share_trained(model)[0]
    first.ds_numel, first.data = first.numel(), torch.empty(0)  # what ZeRO-3 leaves of a parameter
    assert share_trained(model) == (share, share)
    whole = share_trained(tuned(llama, lora()))
    assert share_trained(tuned(llama, lora("nf4"))) == whole
    assert share_trained(tuned(llama, lora("int8"))) == whole


@pytest.mark.parametrize("config", [lora(), lora(dora=True, targets=["q_proj", "embed_tokens"]), prompt()])
def test_start_is_a_function_of_the_seed(llama, config):
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    first = trained(tuned(llama, config))
    assert torch.equal(torch.rand(1), drawn)  # the stream outside goes on untouched
    torch.manual_seed(99)
    again, other = trained(tuned(llama, config)), trained(tuned(llama, config, seed=4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("folder", ["llama", "qwen2"])
def test_everything_trained_is_float32_over_a_16_bit_base(folder, request):
    config = lora(bias="all", modules_to_save=["embed_tokens"])
    model = tuned(request.getfixturevalue(folder), config, torch.bfloat16)
    learned = trained(model)
    assert {p.dtype for p in learned.values()} == {torch.float32}
    assert any("modules_to_save" in name for name in learned)
    assert any("bias" in name for name in learned) == (folder == "qwen2")
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert model(IDS).logits.dtype == torch.bfloat16
            assert all(g is not None and g.dtype == torch.float32 for g in gradients(model).values())
            model.zero_grad()


def test_a_trained_copy_passes_a_loss_on_in_full_precision(llama):
    model = tuned(llama, lora(modules_to_save=["lm_head"]), torch.bfloat16)
    head = model.get_base_model().lm_head.modules_to_save["default"]
    head.forward = lambda hidden: hidden.float().sum()  # the output layer gives the loss itself (loss_head)
    assert head(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


def test_tied_embeddings_stay_one_matrix_when_saved(qwen2):
    model = tuned(qwen2, lora(modules_to_save=["lm_head"]))
    copies = [name for name in trained(model) if "modules_to_save" in name]
    assert copies == ["base_model.model.model.embed_tokens.modules_to_save.default.weight"]
    base = model.get_base_model()
    entry, head = (m.modules_to_save["default"] for m in (base.model.embed_tokens, base.lm_head))
    assert entry.weight is head.weight


def test_resized_embeddings_are_trained_without_being_asked_for(llama, qwen2, tmp_path):
    tiny_tokenizer(tmp_path, 310)
    tokenizer = load_tokenizer(ModelConfig(path=str(tmp_path)))
    for folder, count in ((llama, 2), (qwen2, 1)):
        model = tuned(folder, lora(), prepare=lambda model: fit_vocabulary(model, tokenizer, 5))
        copies = [p for name, p in trained(model).items() if "modules_to_save" in name]
        assert [p.shape for p in copies] == [(310, 32)] * count
        again = tuned(folder, lora(), prepare=lambda model: fit_vocabulary(model, tokenizer, 5))
        assert all(torch.equal(p, trained(again)[name]) for name, p in trained(model).items())
    with pytest.raises(UserError, match="prompt tuning would not train"):
        tuned(llama, prompt(), prepare=lambda model: fit_vocabulary(model, tokenizer, 5))
    model = load_model(AutoModelForCausalLM, ModelConfig(path=str(llama)), torch.float32)
    assert not fit_vocabulary(model, load_tokenizer(ModelConfig(path=str(llama))), 5)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_base_gives_gradients_to_adapters_also_with_checkpointing(llama, quantization):
    model = tuned(llama, lora(quantization))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert type(layer).__name__ == {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization]
    expected = gradients(model)

    def checkpointing(base):
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})

    found = gradients(tuned(llama, lora(quantization), prepare=checkpointing))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [lora(), lora("nf4"), prompt()], ids=["lora", "qlora", "prompt"])
def test_a_user_sees_no_warning_about_our_own_calls(llama, config, caplog):
    with warnings.catch_warnings(action="error"):
        tuned(llama, config)
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]


def test_a_forward_pass_without_gradients_leaves_the_quantised_base_as_it_is(tmp_path):
    """On CPUs with AVX512_BF16 bitsandbytes packs 4-bit weights anew in such a pass, and nothing learns after it."""
    sizes = {"hidden_size": 64, "intermediate_size": 128}  # whole blocks of 64: it fails on smaller ones
    folder = tiny_model(tmp_path, "llama", **sizes)
    model = tuned(folder, lora("nf4"))
    layers = [m.base_layer for m in model.modules() if hasattr(m, "base_layer")]
    assert len(layers) == 14
    before = [dequantized(layer, layer.weight).clone() for layer in layers]
    expected = gradients(model)
    model.zero_grad()
    model.eval()
    with torch.no_grad():
        answers = model(IDS).logits
    for layer, weight in zip(layers, before, strict=True):
        assert torch.equal(dequantized(layer, layer.weight), weight)
    found = gradients(model)
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    copy_dequantized(plain := tuned(folder, lora()), model)
    torch.testing.assert_close(plain.eval()(IDS).logits, answers, rtol=1e-4, atol=1e-4)


def test_double_quantisation_is_a_choice(llama):
    for double in (True, False):
        config = TuningConfig(kind="lora", quantization="nf4", double_quantization=double)
        options = make_tuning(config, 0).load_options(torch.bfloat16)["quantization_config"]
        assert options.bnb_4bit_use_double_quant is double
        assert (options.bnb_4bit_quant_type, options.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)


def test_prompt_starts_from_words_or_from_a_text(llama):
    model = tuned(llama, prompt(virtual_tokens=6))
    assert list(trained(model)) == ["prompt_encoder.default.embedding.weight"]
    words = model.get_base_model().get_input_embeddings().weight
    start = trained(model)["prompt_encoder.default.embedding.weight"]
    assert all((row == words).all(-1).any() for row in start)
    assert model(IDS).logits.shape == (2, 18, 300)
    assert gradients(model)["prompt_encoder.default.embedding.weight"].abs().sum() > 0
    text = tuned(llama, prompt(virtual_tokens=6, init_text="ab"))
    ids = load_tokenizer(ModelConfig(path=str(llama)))("ab")["input_ids"]
    expected = words[(ids * 6)[:6]]
    torch.testing.assert_close(trained(text)["prompt_encoder.default.embedding.weight"], expected)


def test_prompt_cannot_pack_and_the_others_can():
    assert [TUNINGS[kind].can_pack for kind in ("full", "lora", "prompt")] == [
        True,
        True,
        False,
    ]


REFUSED = {
    "unknown target": (lora(targets=["q_pro"]), r"tuning\.lora\.targets: .*q_pro; similar names are q_proj"),
    "module that holds others": (lora(targets=["mlp"]), "mlp is a Qwen2MLP.*down_proj, gate_proj, up_proj"),
    "unknown module to save": (lora(modules_to_save=["lm_hed"]), r"modules_to_save: .*lm_hed; similar names are"),
    "tied matrix twice": (lora(targets=["embed_tokens"], modules_to_save=["lm_head"]), "share one matrix"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_where_the_model_shows_it(qwen2, name):
    config, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        tuned(qwen2, config)


def test_another_head_is_trained_with_the_adapter(qwen2):
    """No objective is named here: a classification head is a module to save, and peft's task comes from outside."""
    described = ModelConfig(path=str(qwen2))
    with seeded(1):
        base = load_model(
            AutoModelForTokenClassification, described, torch.float32, options={"num_labels": 5}, seed=7, new=["score"]
        )
    model = make_tuning(lora(modules_to_save=["score"]), 0, task="TOKEN_CLS").apply(base)
    assert [p.shape for n, p in trained(model).items() if "score" in n and p.ndim == 2] == [(5, 32)]
    assert not any("score" in name and "lora_" in name for name in trained(model))


def test_description_names_class_and_labels(qwen2, tmp_path):
    config = lora("nf4")
    model = tuned(qwen2, config)
    make_tuning(config, 0).save({}, model, tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["architectures"] == ["Qwen2ForCausalLM"]
    assert "quantization_config" not in described
    assert (tmp_path / "generation_config.json").exists()


STATE_SPACE = {
    "mamba": MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, state_size=4),
    "falcon_h1": FalconH1Config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_expand=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", STATE_SPACE)
def test_all_linear_of_a_state_space_model_leaves_out_what_lora_cannot_adapt(family, caplog):
    with caplog.at_level(logging.INFO):
        model = make_tuning(lora(), 0).apply(AutoModelForCausalLM.from_config(STATE_SPACE[family]))
    assert "tuning.lora.targets: all-linear excludes conv1d, out_proj" in caplog.text
    assert any("in_proj.lora_A" in name for name in trained(model))
    named = make_tuning(lora(targets=["in_proj", "out_proj"]), 0)
    fresh = AutoModelForCausalLM.from_config(STATE_SPACE[family])
    with pytest.raises(UserError, match=r"tuning\.lora\.targets: out_proj cannot be adapted"):
        named.apply(fresh)


def test_a_prompt_for_a_model_without_attention_is_refused():
    with pytest.raises(UserError, match=r"tuning\.kind: prompt tuning is not possible with a MambaForCausalLM"):
        make_tuning(TuningConfig(kind="prompt"), 0).apply(AutoModelForCausalLM.from_config(STATE_SPACE["mamba"]))


def test_adapter_config_names_its_modules_in_order(llama, tmp_path):
    config = lora()
    make_tuning(config, 0).save({}, tuned(llama, config), tmp_path)
    named = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(named) == 14
    assert named == sorted(named)
