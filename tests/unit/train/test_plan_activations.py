"""Activations as `train.plan` computes them, against what autograd saves in real models of the same shape."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config

from tests.support.memory_models import CONFIGS, Case
from train.plan.activations import Activations, Meter, Shape, at_peak, loss_bytes, measure, saving
from train.tuning import make_tuning
from train.tuning.describe import base_of
from zerotune.models import loss_head
from zerotune.models.quantized_size import quantized_bytes

SHAPES = {"packed": Shape(1, 48), "padded": Shape(4, 24, masked=True)}


def tuned(case: Case, device: str) -> torch.nn.Module:
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(CONFIGS[case.family], dtype=case.load_dtype)
        return make_tuning(case.tuning_config).apply(model).train()


def really_saved(model: torch.nn.Module, shape: Shape, casts: bool) -> int:
    ids = torch.ones((shape.rows, shape.length), dtype=torch.long)
    mask = None
    if shape.masked:
        mask = torch.ones_like(ids)
        mask[0, -5:] = 0
    loss_head.install(model)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=casts),
        saving(model) as storages,
        loss_head.predicting(None, lambda _layer, hidden, _targets: hidden),
    ):
        outputs = model(input_ids=ids, attention_mask=mask, use_cache=False)
    del outputs
    return sum(storages.values())


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_saved_tensors(family: str, tuning: str, layout: str, precision: str) -> None:
    case, shape = Case("ddp", family, tuning, "adamw", precision), SHAPES[layout]
    planned = measure(tuned(case, "meta"), shape, 4 if precision == "fp32" else 2, "ddp")
    assert planned.layers == 3
    found = really_saved(tuned(case, "cpu"), shape, casts=precision == "bf16")
    assert planned.rest + planned.inside == pytest.approx(found, rel=0.1)


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all() -> None:
    planned = measure(tuned(Case("ddp", "llama", "full", "adamw", "fp32"), "meta"), SHAPES["packed"], 4, "ddp")
    assert planned.hidden == 48 * 36 * 4
    assert planned.again > planned.inside / 3
    assert at_peak([planned], checkpointing=True, loss=0) == {
        "activations": planned.rest + 3 * planned.hidden,
        "a layer's backward pass": planned.again,
    }
    assert at_peak([planned], checkpointing=True, loss=10**9)["activations"] == planned.rest + 3 * planned.hidden


def test_two_networks_keep_the_inputs_of_their_own_layers() -> None:
    """Two layers of width 10 and three of width 100 keep 320, not 5 x 110; of their layers one works at a time."""
    small = Activations(inside=1000, rest=1, hidden=10, layers=2, casts=0, work=5, again=7)
    large = Activations(inside=5000, rest=2, hidden=100, layers=3, casts=0, work=50, again=70)
    with_inputs = {"activations": 3 + 2 * 10 + 3 * 100, "a layer's backward pass": 70}
    assert at_peak([small, large], checkpointing=True, loss=0) == with_inputs
    assert at_peak([small, large], checkpointing=False, loss=0) == {
        "activations": 6003,
        "a layer's backward pass": 50,
    }


SIZES = {
    "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 32,
}  # fmt: skip
LARGER = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=64),
    "gpt2": GPT2Config(vocab_size=1000, n_embd=128, n_layer=4, n_head=4, n_positions=512, attn_pdrop=0.0),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", [Shape(1, 384), Shape(4, 96, masked=True)], ids=["packed", "padded"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("family", LARGER)
def test_peak_of_forward_and_backward(
    family: str, tuning: str, shape: Shape, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations, loss and gradients in the second micro-batch of a step: the most that lives at once."""
    monkeypatch.setattr(loss_head, "product_dtype", lambda dtype, _device: dtype)  # as on a GPU
    case = Case("ddp", family, tuning, "adamw", "bf16")

    def made(device: str) -> torch.nn.Module:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(LARGER[family], dtype=case.load_dtype)
            return make_tuning(case.tuning_config).apply(model).train()

    loss = loss_bytes(made("meta"), shape.tokens, 2, device="cpu")
    planned = sum(at_peak([measure(made("meta"), shape, 2, "ddp")], checkpointing, loss).values())
    model = made("cpu")
    if checkpointing:
        base = base_of(model)
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    ids = torch.ones((shape.rows, shape.length), dtype=torch.long)
    mask = torch.ones_like(ids) if shape.masked else None
    if mask is not None:
        mask[0, -5:] = 0
    with Meter(*model.parameters(), ids) as meter:
        for _ in range(2):
            meter.peak = 0
            with torch.autocast("cpu", torch.bfloat16):
                inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
                summed = loss_head.token_loss(model, inputs, ids)
            summed.backward()
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    assert planned + gradients == pytest.approx(meter.peak, rel=0.1)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("chunk", [2**25, 2000])
def test_loss(trained: bool, precision: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_head, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(loss_head, "product_dtype", lambda dtype, _device: dtype)  # as on a GPU
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    half = precision == "bf16"
    if half and not trained:
        model.bfloat16()
    model.requires_grad_(trained)
    loss_head.install(model)
    hidden = torch.randn(200, 36, dtype=torch.bfloat16 if half else torch.float32, requires_grad=True)
    targets = torch.randint(0, 131, (1, 200))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=half),
        Meter(hidden, targets, *model.parameters()) as meter,
        loss_head.predicting(targets),
    ):
        model.lm_head(hidden[None])
    planned = loss_bytes(model, 200, 2 if half else 4, device="cpu")
    assert planned == pytest.approx(meter.peak, rel=0.1)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("shape", [(64, 192), (37, 100), (1024, 640)])
def test_quantized_weights_are_exact(shape: tuple[int, int], double: bool) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    packed, state = functional.quantize_4bit(
        torch.randn(shape, dtype=torch.bfloat16), quant_type="nf4", compress_statistics=double
    )
    tensors = [packed, state.absmax, state.code]
    if double:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    assert quantized_bytes(shape, "nf4", double) == sum(t.numel() * t.element_size() for t in tensors)
