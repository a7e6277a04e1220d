"""Packed rows give what the same rows give one by one, and no document sees another."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from zerotune.common.errors import UserError
from zerotune.models import attention

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LENGTHS = [7, 1, 19, 12]
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "mistral with a window of 5": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=5)),
    "gemma2 with soft caps": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, head_dim=8, sliding_window=5, query_pre_attn_scalar=8, attn_logit_softcapping=5.0)
    ),
}


@pytest.fixture(autouse=True)
def _registered():
    attention.register()
    torch.manual_seed(0)


def build(family: str, implementation: str = attention.NAME):
    torch.manual_seed(1)
    model = FAMILIES[family]()
    model.set_attn_implementation(implementation)
    return model


def pack(documents: list[torch.Tensor]) -> dict:
    lengths = [len(d) for d in documents]
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {
        "input_ids": torch.cat(documents)[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": max(lengths), "max_length_k": max(lengths),
        "use_cache": False,
    }  # fmt: skip


def documents(lengths=LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 97, (n,), generator=generator) for n in lengths]


def gradients(model, scalar) -> dict[str, torch.Tensor]:
    model.zero_grad()
    scalar.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_one_by_one_with_gradients(family, checkpointing):
    docs = documents()
    weight = torch.randn(sum(LENGTHS), 97)
    alone = build(family, "eager")
    logits = torch.cat([alone(input_ids=d[None], use_cache=False).logits[0] for d in docs])
    expected = gradients(alone, (logits * weight).sum())
    packed = build(family)
    if checkpointing:
        packed.gradient_checkpointing_enable({"use_reentrant": False})
        packed.train()
    got = packed(**pack(docs)).logits[0]
    torch.testing.assert_close(got, logits, atol=1e-5, rtol=1e-5)
    actual = gradients(packed, (got * weight).sum())
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad, atol=1e-5 * float(grad.abs().max()) + 1e-7, rtol=1e-5, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("boundaries", ["given", "from positions"])
def test_no_document_sees_another(family, boundaries):
    """Changing the first document leaves every bit of the others, forwards and backwards."""
    model, docs = build(family), documents()
    changed = [(docs[0] + 7) % 97, *docs[1:]]
    outputs = []
    for version in (docs, changed):
        inputs = pack(version)
        if boundaries == "from positions":
            inputs = {k: inputs[k] for k in ("input_ids", "position_ids", "use_cache")}
        embeddings = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
        logits = model(inputs_embeds=embeddings, **inputs).logits[0]
        (grad,) = torch.autograd.grad(logits[LENGTHS[0] :].square().sum(), embeddings)
        assert not grad[0, : LENGTHS[0]].any(), "the later documents' output depends on the first"
        outputs.append((logits, grad))
    assert not torch.equal(outputs[0][0][: LENGTHS[0]], outputs[1][0][: LENGTHS[0]])
    assert torch.equal(outputs[0][0][LENGTHS[0] :], outputs[1][0][LENGTHS[0] :])
    assert torch.equal(outputs[0][1][0, LENGTHS[0] :], outputs[1][1][0, LENGTHS[0] :])


@pytest.mark.parametrize("family", ["llama", "mistral with a window of 5"])
@pytest.mark.parametrize("lengths", [[23], [6, 17]])
def test_no_mask_is_built_for_packs_and_one_document_works(family, lengths, monkeypatch):
    model, docs = build(family), documents(lengths)
    masks = []
    inner = attention.F.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention",
                        lambda *a, **k: masks.append(k.get("attn_mask")) or inner(*a, **k))  # fmt: skip
    with torch.no_grad():
        got = model(**pack(docs)).logits[0]
        alone = build(family, "eager")
        expected = torch.cat([alone(input_ids=d[None], use_cache=False).logits[0] for d in docs])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert all(mask is None or mask.shape[-1] <= max(lengths) for mask in masks)
    assert len(masks) == len(lengths) * model.config.num_hidden_layers


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral with a window of 5"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_get_the_normal_mask(family, side):
    docs = documents([5, 11, 8])
    widest = max(len(d) for d in docs)
    ids, mask = torch.zeros(3, widest, dtype=torch.long), torch.zeros(3, widest, dtype=torch.long)
    for row, d in enumerate(docs):
        where = slice(0, len(d)) if side == "right" else slice(widest - len(d), widest)
        ids[row, where], mask[row, where] = d, 1
    with torch.no_grad():
        ours, theirs = (build(family, n)(input_ids=ids, attention_mask=mask).logits for n in (attention.NAME, "eager"))
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral with a window of 5"])
def test_generation_with_a_cache_equals_sdpa(family):
    ids = torch.tensor([[0, 0, 9, 4, 5], [3, 8, 6, 7, 11]])
    mask = (ids != 0).long()
    outputs = [
        build(family, name).generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        for name in (attention.NAME, "sdpa")
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_its_rounding(dtype):
    heads, kv, positions, depth = 4, 2, sum(LENGTHS), 16
    starts = torch.tensor([0, *LENGTHS]).cumsum(0, dtype=torch.int32)
    exact = [torch.randn(1, n, positions, depth).to(dtype).double().requires_grad_() for n in (heads, kv, kv)]
    half = [x.detach().to(dtype).requires_grad_() for x in exact]
    module = torch.nn.Module()
    outputs = [attention.document_attention(module, *x, None, cu_seq_lens_q=starts)[0] for x in (exact, half)]
    assert outputs[1].dtype == dtype
    assert outputs[1].shape == (1, positions, heads, depth)
    slope = torch.randn_like(outputs[0]).to(dtype)
    grads = [torch.autograd.grad(o, x, slope.to(o.dtype)) for o, x in zip(outputs, (exact, half), strict=True)]
    step = 2.0 * torch.finfo(dtype).eps
    for got, expected in zip([outputs[1], *grads[1]], [outputs[0], *grads[0]], strict=True):
        assert got.dtype == dtype
        assert float((got.detach().double() - expected).norm() / expected.norm()) < step


def test_under_autocast_a_cpu_still_computes_attention_in_float32(monkeypatch):
    """Float32 weights in bf16 arithmetic: rotary embeddings make float32 queries beside bf16 values."""
    seen = []
    inner = attention.F.scaled_dot_product_attention

    def spy(*tensors, **options):
        seen.append({x.dtype for x in tensors} | {torch.is_autocast_enabled("cpu")})
        return inner(*tensors, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    model, inputs = build("llama"), pack(documents())
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(**inputs).logits[0]
    assert seen == [{torch.float32, False}] * (len(LENGTHS) * model.config.num_hidden_layers)
    got = gradients(model, logits.float().square().sum())
    exact = build("llama")
    wanted = gradients(exact, exact(**inputs).logits[0].square().sum())
    for name, gradient in wanted.items():
        assert float((got[name] - gradient).norm() / gradient.norm()) < 3e-2, name


@pytest.mark.parametrize(
    ("capability", "dtype", "depth", "value_depth", "fits"),
    [
        ((8, 0), torch.bfloat16, 64, 64, True),
        ((8, 0), torch.float32, 64, 64, False),
        ((7, 5), torch.float16, 64, 64, False),  # T4
        ((7, 0), torch.float16, 64, 64, False),  # V100
        ((9, 0), torch.float16, 256, 256, True),
        ((8, 9), torch.float16, 256, 256, False),
        ((9, 0), torch.bfloat16, 288, 288, False),
        ((9, 0), torch.bfloat16, 20, 20, False),
        ((9, 0), torch.bfloat16, 192, 128, False),
    ],
)
def test_where_the_variable_length_kernel_runs(capability, dtype, depth, value_depth, fits):
    assert attention.kernel_fits(capability, dtype, depth, value_depth) is fits


def test_dropout_is_applied_while_training_only():
    starts = torch.tensor([0, 40], dtype=torch.int32)
    q, k, v = (torch.randn(1, n, 40, 8) for n in (4, 2, 2))
    call = [attention.document_attention(torch.nn.Module(), q, k, v, None, dropout=p, cu_seq_lens_q=starts)[0]
            for p in (0.0, 0.5, 0.5)]  # fmt: skip
    assert not torch.equal(call[0], call[1])
    assert not torch.equal(call[1], call[2])


def test_what_cannot_be_honoured_is_refused():
    starts = torch.tensor([0, 3, 5], dtype=torch.int32)
    q = torch.randn(1, 2, 5, 8)
    with pytest.raises(ValueError, match="s_aux"):
        attention.document_attention(torch.nn.Module(), q, q, q, None, cu_seq_lens_q=starts, s_aux=torch.zeros(2))
    two = torch.cat([q, q])
    with pytest.raises(ValueError, match="one row"):
        attention.document_attention(torch.nn.Module(), two, two, two, None, cu_seq_lens_q=starts)


def test_choice_of_implementation():
    assert attention.implementation("auto", True, "cpu") == attention.NAME
    assert attention.implementation("sdpa", True, "cpu") == attention.NAME
    assert attention.implementation("auto", False, torch.device("cpu")) is None  # some families have no sdpa
    assert attention.implementation("sdpa", False, "cpu") == "sdpa"
    with pytest.raises(UserError, match=r"model\.attention.*flash_attention_2"):
        attention.implementation("flash_attention_2", True, "cpu")


def test_can_pack():
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        GptOssConfig,
        GptOssForCausalLM,
        MambaConfig,
        MambaForCausalLM,
    )

    assert attention.can_pack(build("llama"))
    assert attention.can_pack(build("gemma2 with soft caps"))
    assert not attention.can_pack(BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)))
    assert not attention.can_pack(MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1)))
    sinks = GptOssConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_local_experts=2, intermediate_size=16)
    with torch.device("meta"):
        assert not attention.can_pack(GptOssForCausalLM(sinks))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5])
def test_cuda_kernel_equals_float32_by_document(window):
    starts = torch.tensor([0, *LENGTHS]).cumsum(0, dtype=torch.int32).cuda()
    half = [
        torch.randn(1, n, sum(LENGTHS), 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in (4, 2, 2)
    ]
    full = [x.detach().float().requires_grad_() for x in half]
    outputs = [attention.document_attention(torch.nn.Module(), *x, None, cu_seq_lens_q=starts, sliding_window=window)[0]
               for x in (half, full)]  # fmt: skip
    slope = torch.randn_like(outputs[1])
    grads = [torch.autograd.grad(o, x, slope.to(o.dtype)) for o, x in zip(outputs, (half, full), strict=True)]
    for got, expected in zip([outputs[0], *grads[0]], [outputs[1], *grads[1]], strict=True):
        assert float((got.detach().float() - expected).norm() / expected.norm()) < 2e-2
