"""The loss taken inside the output layer equals cross entropy over whole logits, with every gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.nn import functional as F
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from zerotune.models import loss_head
from zerotune.models.head_source import gives_logits_unchanged

SMALL = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
OLD = {"vocab_size": 61, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "attn_pdrop": 0.0,
       "embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
# family -> (model, whether the loss may be taken in the layer)
FAMILIES = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), True),
    "llama tied": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)), True),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(**OLD)), True),
    "gptj with a bias": (lambda: GPTJForCausalLM(GPTJConfig(**OLD, rotary_dim=4)), True),
    "gemma3 without a cap": (lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, head_dim=8)), True),
    "gemma3 with a cap": (
        lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, head_dim=8, final_logit_softcapping=0.3)), False),
    "gemma2 caps": (lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.3)), False),
    "cohere scales": (lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=3.0)), False),
    "granite divides": (lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)), False),
    "roberta has layers in its head": (
        lambda: RobertaForCausalLM(RobertaConfig(**{**SMALL, "is_decoder": True, "hidden_dropout_prob": 0.0,
                                                    "attention_probs_dropout_prob": 0.0})), False),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Several chunks and a ragged last one even for these sizes."""
    monkeypatch.setattr(loss_head, "CHUNK_ELEMENTS", 61 * 4)
    torch.manual_seed(0)


def build(family: str = "llama"):
    torch.manual_seed(1)
    model = FAMILIES[family][0]()
    if family == "gptj with a bias":
        torch.nn.init.normal_(model.lm_head.bias)
    return model


def batch(rows: int = 2, positions: int = 9, learned: float = 0.6):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 61, (rows, positions), generator=generator)
    targets = torch.randint(3, 61, (rows, positions), generator=generator)
    targets[torch.rand(rows, positions, generator=generator) >= learned] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}, targets


def whole(model, inputs, targets):
    """Cross entropy over all logits in float32."""
    logits = model(**inputs).logits.float()[:, -targets.shape[1] :]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def assert_same(model, reference, inputs, targets, factor=0.37, tolerance=1e-5, took=lambda p: p.grad):
    expected, got = whole(reference, inputs, targets), loss_head.token_loss(model, inputs, targets)
    assert got.shape == ()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    (got * factor).backward()
    (expected * factor).backward()
    wanted = {name: took(p) for name, p in reference.named_parameters() if p.requires_grad}
    found = {name: took(p) for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == wanted.keys()
    assert any(grad is not None and grad.abs().max() > 0 for grad in wanted.values())
    for name, grad in wanted.items():
        assert (found[name] is None) == (grad is None), name
        if grad is not None:
            limit = tolerance * float(grad.abs().max()) + 1e-8
            torch.testing.assert_close(found[name], grad, rtol=tolerance, atol=limit, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("learned", [0.6, 1.0])
def test_loss_and_gradients_equal_whole_logits(family, learned):
    model = build(family)
    inputs, targets = batch(learned=learned)
    assert gives_logits_unchanged(model, loss_head.output_layer(model)) == FAMILIES[family][1]
    assert_same(model, copy.deepcopy(model), inputs, targets)


@pytest.mark.parametrize("family", ["llama", "cohere scales"])
def test_a_model_that_needs_all_logits_is_told_of(family, caplog):
    with caplog.at_level("INFO", logger=loss_head.__name__):
        loss_head.install(build(family))
    assert [r.getMessage().split(":")[0] for r in caplog.records] == (
        [] if FAMILIES[family][1] else ["CohereForCausalLM changes its logits after the output layer"]
    )


def test_only_learned_positions_are_projected(monkeypatch):
    model = build()
    inputs, targets = batch()
    rows = []
    inner = loss_head.F.linear
    monkeypatch.setattr(loss_head.F, "linear", lambda x, w, b=None: rows.append((len(x), len(w))) or inner(x, w, b))
    loss_head.token_loss(model, inputs, targets)
    sizes = [n for n, vocabulary in rows if vocabulary == 61]
    assert sum(sizes) == int((targets != -100).sum())
    assert max(sizes) == 4


def test_logits_outside_the_context_and_generation_are_as_ever():
    model, (inputs, targets) = build(), batch()
    before = model(**inputs).logits
    answers = model.generate(input_ids=inputs["input_ids"], max_new_tokens=4, do_sample=False)
    loss_head.install(model)
    loss_head.token_loss(model, inputs, targets)
    assert torch.equal(model(**inputs).logits, before)
    assert torch.equal(model.generate(input_ids=inputs["input_ids"], max_new_tokens=4, do_sample=False), answers)
    names = set(model.state_dict())
    loss_head.install(model)
    assert set(model.state_dict()) == names == set(build().state_dict())


@pytest.mark.parametrize("family", ["llama tied", "gptj with a bias", "gemma2 caps"])
def test_nothing_to_learn_gives_zero_that_touches_every_parameter(family):
    model = build(family)
    inputs, targets = batch()
    loss = loss_head.token_loss(model, inputs, torch.full_like(targets, -100))
    assert loss.item() == 0.0
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    assert not any(p.grad.any() for p in model.parameters())


def test_without_gradients_none_are_computed(monkeypatch):
    model, (inputs, targets) = build(), batch()
    expected = whole(model, inputs, targets).detach()
    monkeypatch.setattr(torch, "mm", lambda *a, **k: pytest.fail("a gradient was computed"))
    with torch.no_grad():
        got = loss_head.token_loss(model, inputs, targets)
    assert not got.requires_grad
    torch.testing.assert_close(got, expected)


def test_frozen_head_takes_no_weight_gradient():
    model, (inputs, targets) = build(), batch()
    model.lm_head.weight.requires_grad_(False)
    reference = copy.deepcopy(model)
    assert_same(model, reference, inputs, targets)
    assert model.lm_head.weight.grad is None


@pytest.mark.parametrize("native", [True, False])
def test_bf16_weights_are_within_their_rounding(native, monkeypatch):
    """Against float32 arithmetic on the same bf16 weights; both ways of multiplying halves on a CPU."""
    monkeypatch.setattr(loss_head, "product_dtype", lambda dtype, device: dtype if native else torch.float32)
    hidden, weight = torch.randn(50, 16).bfloat16(), torch.randn(61, 16).bfloat16()
    targets = torch.randint(61, (50,))
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    half = [x.clone().requires_grad_() for x in (hidden, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="sum")
    got = loss_head.linear_loss(*half, None, targets)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=5e-3 if native else 1e-5, atol=0)
    for found, wanted in zip(torch.autograd.grad(got, half), torch.autograd.grad(expected, exact), strict=True):
        assert found.dtype == torch.bfloat16
        error = float((found.double() - wanted).norm() / wanted.norm())
        assert error < (2e-2 if native else 4e-3)


def test_the_factor_of_the_loss_is_not_rounded():
    """What a sum is divided by reaches every gradient: rounded to bf16 it would bend a step by up to 0.4 %."""
    hidden, weight = torch.randn(200, 64).bfloat16(), torch.randn(61, 64).bfloat16()
    targets, factor = torch.randint(61, (200,)), 1 / 173
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    half = [x.clone().requires_grad_() for x in (hidden, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="sum") * factor
    got = loss_head.linear_loss(*half, None, targets) * factor
    for found, wanted in zip(torch.autograd.grad(got, half), torch.autograd.grad(expected, exact), strict=True):
        assert found.dtype == torch.bfloat16
        assert float((found.double() * wanted).sum() / wanted.square().sum()) == pytest.approx(1, abs=5e-4)


def test_a_sum_too_large_for_fp16_survives_its_factor():
    hidden = torch.full((3000, 16), 30.0).half().requires_grad_()
    weight = torch.zeros(61, 16).half().requires_grad_()
    loss = loss_head.linear_loss(hidden, weight, None, torch.zeros(3000, dtype=torch.long)) / 3000
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient[0].float(), torch.full((16,), 30.0 * (1 / 61 - 1)), rtol=1e-3, atol=0)


def test_autocast_gives_float32_weights_float32_gradients():
    model, (inputs, targets) = build(), batch()
    expected = whole(model, inputs, targets)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss_head.token_loss(model, inputs, targets)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=0)
    got.backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    reference = copy.deepcopy(model)
    reference.zero_grad()
    whole(reference, inputs, targets).backward()
    found, wanted = model.lm_head.weight.grad, reference.lm_head.weight.grad
    assert float((found - wanted).norm() / wanted.norm()) < 2e-2


def lora(model, **options):
    torch.manual_seed(2)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, **options))
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    return adapted


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    ],
    ids=["all-linear", "on the head", "head saved", "head and embeddings saved", "dora on the head"],
)
@pytest.mark.parametrize("installed", ["before the adapter", "lazily"])
def test_lora(options, installed):
    base = build()
    reference = lora(copy.deepcopy(base), **options)
    if installed == "before the adapter":
        loss_head.install(base)
    inputs, targets = batch()
    assert_same(lora(base, **options), reference, inputs, targets)


def test_prompt_tuning_looks_at_the_last_positions():
    def tuned(model):
        torch.manual_seed(2)
        return get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))

    base = build()
    reference = tuned(copy.deepcopy(base))
    loss_head.install(base)
    inputs, targets = batch()
    assert_same(tuned(base), reference, inputs, targets)


def test_wrapped_models_are_found():
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **inputs):
            return self.module(**inputs)

    model = build()
    reference = Wrapper(copy.deepcopy(model))
    inputs, targets = batch()
    assert_same(Wrapper(model), reference, inputs, targets)


def test_installed_models_can_be_copied_and_saved(tmp_path):
    model, (inputs, targets) = build("llama tied"), batch()
    loss_head.install(model)
    assert_same(copy.deepcopy(model), build("llama tied"), inputs, targets)
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.lm_head) is torch.nn.Linear
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
