"""Models with numbers: Cauchy algebra, probabilities and likelihoods at extremes, gradients, and untouched text.

Shape suffixes: see zerotune.models.numeric.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import mpmath
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from zerotune.common.errors import UserError
from zerotune.data.numbers_in_text import LARGEST
from zerotune.models import cauchy, loss_head, numeric, pointer
from zerotune.models.recurrent import LstmConfig, LstmForCausalLM, register
from zerotune.models.value_distributions import Values

WORDS, NUMBER = 61, 60
SMALL: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen2 tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=64)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, head_dim=8)),
    "lstm": lambda: LstmForCausalLM(LstmConfig(vocab_size=WORDS, hidden_size=16)),
}
EXTREMES = (0.0, 1e-300, -1e-30, 0.001, -5.0, 1e5, -1e30, 1e300, -1e300)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks and a ragged last one even for these sizes."""
    monkeypatch.setattr(loss_head, "CHUNK_ELEMENTS", WORDS * 8)
    torch.manual_seed(0)


def build(family: str = "llama", **settings: Any) -> Any:
    torch.manual_seed(1)
    model = FAMILIES[family]().eval()
    numeric.add(model, numeric.Settings(NUMBER, **settings))
    return model


def trained(model: Any) -> Any:
    """The same with all parts of `numeric` away from their start values."""
    for name, parameter in model.numeric.named_parameters():
        moved = 0.01 if name.startswith("pointer.") else 0.3  # those count 30 times
        parameter.data += moved * torch.randn_like(parameter)
    return model


def batch(rows: int = 2, positions: int = 9) -> tuple[dict[str, Any], Tensor]:
    """Inputs with values, and next tokens; some positions have none."""
    ids_bt = torch.randint(3, NUMBER, (rows, positions))
    ids_bt[torch.rand(rows, positions) < 0.4] = NUMBER
    ids_bt[0, 1] = ids_bt[0, 3] = NUMBER
    values_bt = torch.where(ids_bt == NUMBER, 100 * torch.randn(rows, positions).double(), 0.0)
    targets_bt = F.pad(ids_bt[:, 1:], (0, 1), value=-100)
    targets_bt[1, 2] = -100
    return {"input_ids": ids_bt, "values": values_bt, "use_cache": False}, targets_bt


def test_linear_maps_of_cauchy_variables_are_cauchy() -> None:
    torch.manual_seed(3)
    location_d, scale_d, weight_d = torch.randn(3, 5).double().unbind()
    scale_d = scale_d.exp()
    u_nd = location_d + scale_d * (math.pi * (torch.rand(400_000, 5).double() - 0.5)).tan()
    drawn_n = (u_nd @ weight_d).sort().values
    location, scale = float(weight_d @ location_d), float(weight_d.abs() @ scale_d)
    values = Values(torch.tensor([location]).double(), torch.tensor([scale]).double(), "linear")
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        below = (drawn_n < values.quantiles([share])[0]).double().mean()
        assert float(below) == pytest.approx(share, abs=0.003)
    for threshold in (-3.0, 0.0, 10.0):
        expected = cauchy.log_probability(torch.tensor(location), torch.tensor(scale), threshold).exp()
        assert float((drawn_n > threshold).double().mean()) == pytest.approx(float(expected), abs=0.003)
    inside = (drawn_n - location).abs() < cauchy.standard_quantile(0.95) * scale
    assert float(inside.double().mean()) == pytest.approx(0.9, abs=0.003)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("location", [0.0, 1e-4, -1.0, 7.5, -300.0, 1e12, -1e12])
def test_log_probabilities_at_extremes(location: float, scale: float, dtype: torch.dtype) -> None:
    mpmath.mp.dps = 60
    found = cauchy.log_probability(torch.tensor(location, dtype=dtype), torch.tensor(scale, dtype=dtype), 0.0)
    place, s = (mpmath.mpf(torch.tensor(x, dtype=dtype).item()) for x in (location, scale))
    expected = mpmath.log(mpmath.mpf(1) / 2 + mpmath.atan(place / s) / mpmath.pi)
    assert float(found) == pytest.approx(float(expected), rel=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("space", ["linear", "asinh"])
@pytest.mark.parametrize(("location", "scale"), [(0.0, 1e-6), (3.0, 1.0), (-600.0, 20.0), (0.5, 1e6)])
def test_value_likelihoods_at_extremes(value: float, space: str, location: float, scale: float) -> None:
    mpmath.mp.dps = 700
    place = torch.tensor([location, scale], dtype=torch.float64, requires_grad=True)
    found = Values(place[:1], place[1:], space).negative_log_density(torch.tensor([value], dtype=torch.float64))
    (slope,) = torch.autograd.grad(found.sum(), place)
    v, at, s = map(mpmath.mpf, (value, location, scale))
    y = mpmath.asinh(v) if space == "asinh" else v
    expected = mpmath.log(mpmath.pi * s) + mpmath.log1p(((y - at) / s) ** 2)
    expected += mpmath.log(mpmath.sqrt(1 + v * v)) if space == "asinh" else 0
    assert found.item() == pytest.approx(float(expected), rel=1e-12, abs=1e-12)
    by_location = -2 * (y - at) / (s**2 + (y - at) ** 2)
    by_scale = 1 / s - 2 * (y - at) ** 2 / (s * (s**2 + (y - at) ** 2))
    assert slope.tolist() == [
        pytest.approx(float(by_location), rel=1e-9, abs=1e-300),
        pytest.approx(float(by_scale), rel=1e-6, abs=1e-9 / scale),
    ]


@pytest.mark.parametrize("space", ["linear", "asinh"])
def test_quantiles_of_values_stay_in_range(space: str) -> None:
    location_m = torch.tensor([5.0, 1e6, -1e6], dtype=torch.float64)
    values = Values(location_m, torch.tensor([1.0, 1e305, 1.0], dtype=torch.float64), space)
    for share in (0.01, 0.5, 0.99):
        assert bool((values.quantiles([share])[0].abs() <= LARGEST).all())
    expected = 5.0 if space == "linear" else math.sinh(5.0)
    assert float(values.quantiles([0.5])[0][0]) == pytest.approx(expected)


def naive(location_nd: Tensor, scale_nd: Tensor, weight_vd: Tensor, bias_v: Tensor | None, targets_n: Tensor) -> Tensor:
    location_nv = F.linear(location_nd, weight_vd, bias_v)
    scale_nv = scale_nd @ weight_vd.abs().T + cauchy.SCALE_FLOOR
    p_nv = 0.5 + ((location_nv - 0.7) / scale_nv).atan() / math.pi
    return F.binary_cross_entropy(p_nv, F.one_hot(targets_n, len(weight_vd)).to(p_nv), reduction="sum")


def one_vs_rest_inputs(bias: bool = True) -> list[Any]:
    drawn = [torch.randn(7, 5), torch.rand(7, 5) + 0.1, torch.randn(WORDS, 5), torch.randn(WORDS) if bias else None]
    return [None if x is None else x.double().requires_grad_(True) for x in drawn]


@pytest.mark.parametrize("bias", [True, False])
def test_one_vs_rest_loss_and_gradients(bias: bool) -> None:
    inputs, targets_n = one_vs_rest_inputs(bias), torch.randint(0, WORDS, (7,))
    given = [x for x in inputs if x is not None]
    found = cauchy.one_vs_rest_loss(*inputs, targets_n, 0.7)
    expected = naive(*inputs, targets_n)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(3 * found, given), torch.autograd.grad(3 * expected, given), strict=True):
        torch.testing.assert_close(one, other)


def test_one_vs_rest_loss_of_half_precision_and_nothing() -> None:
    inputs, targets_n = one_vs_rest_inputs(), torch.randint(0, WORDS, (7,))
    exact = cauchy.one_vs_rest_loss(*inputs, targets_n, 0.7)
    half = cauchy.one_vs_rest_loss(*(x.bfloat16() for x in inputs), targets_n, 0.7)
    assert half.item() == pytest.approx(exact.item(), rel=0.02)
    empty = [x[:0] if n < 2 else x for n, x in enumerate(inputs)]
    loss = cauchy.one_vs_rest_loss(*empty, targets_n[:0], 0.7)
    assert loss.item() == 0
    assert all(not slope.any() for slope in torch.autograd.grad(loss, inputs[2:]))


def test_one_vs_rest_never_holds_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, sizes = one_vs_rest_inputs(), []
    real = cauchy._binary
    monkeypatch.setattr(cauchy, "_binary", lambda *args: sizes.append(len(args[0])) or real(*args))
    cauchy.one_vs_rest_loss(*inputs, torch.randint(0, WORDS, (7,)), 0.7)
    assert sizes == [4, 3]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("token_loss", ["softmax", "one_vs_rest"])
def test_text_is_untouched_before_training(family: str, token_loss: str) -> None:
    model = build(family, token_loss="softmax")
    torch.manual_seed(1)
    plain = FAMILIES[family]().eval()
    ids_bt = torch.randint(3, NUMBER, (2, 9))
    expected_btv = plain(ids_bt).logits
    for values_bt in (None, torch.zeros(2, 9, dtype=torch.float64)):
        assert torch.equal(model(input_ids=ids_bt, values=values_bt).logits, expected_btv)
    values_bt = torch.full((2, 9), 1e300, dtype=torch.float64)  # the direction is 0
    assert torch.equal(model(input_ids=ids_bt, values=values_bt).logits, expected_btv)
    if token_loss == "one_vs_rest":
        numeric.add(model, numeric.Settings(NUMBER, token_loss="one_vs_rest", threshold=0.5))
        scale_v = plain.get_output_embeddings().weight.double().abs().sum(1) + cauchy.SCALE_FLOOR
        p_btv = 0.5 + ((expected_btv.double() - 0.5) / scale_v).atan() / math.pi
        torch.testing.assert_close(model(ids_bt).logits.double(), p_btv.log(), rtol=1e-5, atol=1e-5)


def test_a_trained_direction_leaves_text_before_a_number_untouched() -> None:
    model = build()
    model.numeric.direction.weight.data.normal_()
    (inputs, _), rows = batch(), slice(None)
    inputs["values"][:, :4] = 0
    found_btv = model(**inputs).logits
    without_btv = model(**{**inputs, "values": None}).logits
    assert torch.equal(found_btv[rows, :4], without_btv[rows, :4])
    assert not torch.equal(found_btv, without_btv)


def mixtures(
    model: Any,
    hidden_btd: Tensor,
    middle_btd: Tensor,
    inputs: dict[str, Any],
    mask_bt: Tensor,
    own_n: Tensor,
    scale_n: Tensor,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(weights, locations, scales) at each position by loops: the model's own value, and the last numbers up to each
    earlier position.
    """
    module, found = model.numeric.pointer, []
    for (row, place), own, own_scale in zip(mask_bt.nonzero().tolist(), own_n, scale_n, strict=True):
        scores, values, scales = [30 * module.own[0]], [own], [own_scale]
        for earlier in range(place + 1):
            numbers = [t for t in range(earlier + 1) if inputs["input_ids"][row, t] == NUMBER]
            if numbers:
                values.append(inputs["values"][row, numbers[-1]].asinh())
                states = torch.stack([middle_btd[row, earlier], hidden_btd[row, place]])
                states = (states / states.square().mean(-1, keepdim=True).sqrt()).asinh()
                key, query = 30 * module.key @ states[0], 30 * module.query @ states[1]
                scores.append(key @ query / math.sqrt(len(key)))
                scales.append(torch.tensor(1e-9).double())
        found.append((torch.stack(scores).softmax(0).double(), torch.stack(values), torch.stack(scales)))
    return found


def density(mixture: tuple[Tensor, Tensor, Tensor], point: Tensor) -> Tensor:
    weight_k, location_k, scale_k = mixture
    return (weight_k / (math.pi * scale_k * (1 + ((point - location_k) / scale_k) ** 2))).sum()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("token_loss", ["softmax", "one_vs_rest"])
@pytest.mark.parametrize("gate", [1.0, 0.25])
def test_losses(family: str, token_loss: str, gate: float) -> None:
    model = trained(build(family, token_loss=token_loss, threshold=0.5))
    inputs, targets_bt = batch()
    inputs["values"][:, 5:] = torch.where(inputs["input_ids"][:, 5:] == NUMBER, inputs["values"][:1, 1:2], 0)  # copies
    tokens, values = numeric.losses(model, inputs, targets_bt, gate)
    mask_bt = targets_bt != -100
    body = getattr(model, model.base_model_prefix)
    embeddings = model.numeric.direction(model.get_input_embeddings()(inputs["input_ids"]), inputs["values"])
    hidden_nd = body(inputs_embeds=embeddings, use_cache=False).last_hidden_state[mask_bt]
    targets_n = targets_bt[mask_bt]
    location_nd, scale_nd = model.numeric.location(hidden_nd), model.numeric.scale(hidden_nd)
    location_nv = model.get_output_embeddings()(location_nd)
    if token_loss == "softmax":
        log_p_nv = location_nv.log_softmax(-1)
        expected = F.nll_loss(log_p_nv, targets_n, reduction="sum")
    else:
        scale_nv = scale_nd @ model.get_output_embeddings().weight.abs().T + cauchy.SCALE_FLOOR
        p_nv = 0.5 + ((location_nv - 0.5) / scale_nv).atan() / math.pi
        log_p_nv = p_nv.log()
        expected = F.binary_cross_entropy(p_nv, F.one_hot(targets_n, WORDS).float(), reduction="sum")
    assert tokens.item() == pytest.approx(expected.item(), rel=1e-5)
    is_number_n = targets_n == NUMBER
    value_n = F.pad(inputs["values"][:, 1:], (0, 1))[mask_bt].asinh()
    y_n = (location_nd @ model.numeric.value.weight).double()
    s_n = (scale_nd @ model.numeric.value.weight.abs()).double() + cauchy.SCALE_FLOOR
    read = body(inputs_embeds=embeddings, use_cache=False, output_hidden_states=True)
    layer = numeric.settings_of(model.config).key_layer
    middle_btd = read.last_hidden_state if layer is None else read.hidden_states[layer]
    mixture_n = mixtures(model, read.last_hidden_state, middle_btd, inputs, mask_bt, y_n, s_n)
    density_n = torch.stack(list(map(density, mixture_n, value_n))).log() - value_n.cosh().log()
    weight_n = gate + (1 - gate) * log_p_nv[:, NUMBER].double().exp()
    assert values.item() == pytest.approx(-(weight_n * density_n)[is_number_n].sum().item(), rel=1e-4)
    found = numeric.predictions(model, inputs, targets_bt).values
    for share in (0.05, 0.5, 0.95):  # of the probability is below each quantile
        point_m = found.quantiles([share])[0].asinh()
        at_m = [mixture for mixture, is_number in zip(mixture_n, is_number_n, strict=True) if is_number]
        for (weight_k, location_k, scale_k), point in zip(at_m, point_m, strict=True):
            low, high = (  # a quantile inside a narrow copy is the copied number
                (weight_k * (0.5 + ((point + side * 2e-6 - location_k) / scale_k).atan() / math.pi)).sum().item()
                for side in (-1, 1)
            )
            assert low - 3e-5 <= share <= high + 3e-5


@pytest.mark.parametrize("token_loss", ["softmax", "one_vs_rest"])
@pytest.mark.parametrize("space", ["linear", "asinh"])
def test_gradients_against_finite_differences(token_loss: str, space: str) -> None:
    model = trained(build("gpt2", token_loss=token_loss, value_space=space)).double()  # others compute norms in float32
    inputs, targets_bt = batch()
    inputs["values"] /= 30
    tokens, values = numeric.losses(model, inputs, targets_bt, gate=1.0)
    parameters = dict(model.named_parameters())
    width, close = (1e-3, 1e-2) if token_loss == "softmax" else (1e-6, 1e-4)  # loss_head sums in float32
    slopes = dict(zip(parameters, torch.autograd.grad(tokens + 0.5 * values, list(parameters.values())), strict=True))
    for name, parameter in parameters.items():
        direction = torch.randn_like(parameter)
        expected = 0.0
        for step, share in ((1, 8), (-1, -8), (2, -1), (-2, 1)):  # of fourth order
            parameter.data += step * width * direction
            one, other = numeric.losses(model, inputs, targets_bt, gate=1.0)
            expected += share * float(one.detach() + 0.5 * other.detach()) / (12 * width)
            parameter.data -= step * width * direction
        assert float((slopes[name] * direction).sum()) == pytest.approx(expected, rel=close, abs=close), name


@pytest.mark.parametrize("space", ["linear", "asinh"])
def test_a_number_is_copied_exactly_whatever_its_size(space: str) -> None:
    model = build(value_space=space)
    model.numeric.pointer.own.data.fill_(-100)  # nothing but copies
    for value in (5.0, 0.0, 1e-12, 5e-4, 1e300, -1e300, 123456.789, -123456789.0):
        inputs, targets_bt = batch()
        inputs["values"] = (inputs["input_ids"] == NUMBER).double() * value
        offered = torch.tensor(
            [[NUMBER in row[: t + 1] for t in range(len(row))] for row in inputs["input_ids"].tolist()]
        )
        found = numeric.predictions(model, inputs, targets_bt)
        behind = offered[targets_bt != -100][found.is_number_n]
        assert behind.any()
        for quantile_m in found.values.quantiles([0.05, 0.5, 0.95]):
            assert quantile_m[behind].tolist() == [value] * int(behind.sum())


def test_documents_that_share_a_row_do_not_copy_from_each_other() -> None:
    model = trained(build("gpt2"))
    is_number_bt = torch.tensor([[True, False, False, True, False, True]])
    values_bt = torch.tensor([[1.0, 0, 0, 2, 0, 3]]).double()
    places_bt = torch.tensor([[0, 1, 0, 1, 2, 3]])
    offered = pointer.offers(is_number_bt, values_bt, places_bt, lambda values: values)
    assert offered.at_s.tolist() == [0, 1, 3, 4, 5]  # position 2 begins a document
    assert offered.value_k[offered.of_s].tolist() == [1, 1, 2, 2, 3]
    hidden_nd, at_m = torch.randn(6, 16), torch.tensor([1, 2, 4])
    parts = model.numeric.pointer(hidden_nd[at_m], hidden_nd[offered.at_s])
    (weight_mk,) = pointer.Copies(*parts, at_m, offered).weights()
    assert (weight_mk > 0).tolist() == [[True, True, False, False], [True] + 3 * [False], [True, False, True, False]]
    assert weight_mk.sum(-1).tolist() == pytest.approx([1, 1, 1])


def test_a_draw_is_a_copy_as_often_as_the_pointer_says() -> None:
    model = trained(build())
    inputs, targets_bt = batch()
    found = numeric.predictions(model, inputs, targets_bt).values
    one = found._replace(
        location_m=found.location_m[-1:],
        copies=replace(found.copies, query_mr=found.copies.query_mr[-1:], at_m=found.copies.at_m[-1:]),  # type: ignore[union-attr, type-var]
    )
    (weight_1k,) = one.copies.weights()  # type: ignore[union-attr]
    drawn = [float(one.drawn(torch.tensor(0.25), (i + 0.5) / 1000).location_m) for i in range(1000)]
    values = [float(one.location_m) + 0.25, *one.copies.offered.value_k.tolist()]  # type: ignore[union-attr]
    assert [drawn.count(value) / 1000 for value in values] == pytest.approx(weight_1k[0].tolist(), abs=2e-3)


def test_settings_that_a_trained_model_contradicts() -> None:
    model = build(copy=False)
    assert model.numeric.pointer is None
    with pytest.raises(UserError, match=r"numeric\.value_space: asinh and numeric\.copy: false"):
        numeric.add(model, numeric.Settings(NUMBER))


def test_the_gate_is_a_weight_without_gradient() -> None:
    model = trained(build())
    inputs, targets_bt = batch()
    inputs["values"] = torch.where(inputs["input_ids"] == NUMBER, 5.0, 0.0).double()
    head = model.get_output_embeddings().weight
    (slope,) = torch.autograd.grad(numeric.losses(model, inputs, targets_bt, gate=0.0)[1], head, allow_unused=True)
    assert slope is None or not slope.any()


@pytest.mark.parametrize("token_loss", ["softmax", "one_vs_rest"])
def test_batches_without_numbers_give_every_parameter_a_gradient(token_loss: str) -> None:
    model = build(token_loss=token_loss)
    ids_bt = torch.randint(3, NUMBER, (1, 6))
    inputs = {"input_ids": ids_bt, "values": torch.zeros(1, 6, dtype=torch.float64), "use_cache": False}
    for targets_bt in (torch.full((1, 6), -100), F.pad(ids_bt[:, 1:], (0, 1), value=-100)):
        model.zero_grad()
        tokens, values = numeric.losses(model, inputs, targets_bt, gate=0.5)
        assert float(values) == 0
        (tokens + values).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("value", EXTREMES)
def test_extreme_values_at_the_input_are_finite(value: float) -> None:
    model = trained(build())
    inputs, targets_bt = batch()
    inputs["values"][inputs["input_ids"] == NUMBER] = value
    tokens, values = numeric.losses(model, inputs, targets_bt, gate=0.5)
    (tokens + values).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_an_adapter_and_a_copied_output_layer() -> None:
    model = FAMILIES["llama"]()
    description = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", modules_to_save=["lm_head"], r=2)
    tuned = get_peft_model(model, description)
    numeric.add(tuned, numeric.Settings(NUMBER, token_loss="one_vs_rest"))
    inputs, targets_bt = batch()
    tokens, values = numeric.losses(tuned, inputs, targets_bt, gate=0.5)
    (tokens + values).backward()
    names = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert sum(".numeric." in name for name in names) == 8
    assert all(parameter.grad is not None for parameter in tuned.parameters() if parameter.requires_grad)


def test_an_adapted_output_layer_needs_softmax() -> None:
    tuned = get_peft_model(FAMILIES["llama"](), LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], r=2))
    inputs, targets_bt = batch()
    numeric.add(tuned, numeric.Settings(NUMBER, token_loss="one_vs_rest"))
    with pytest.raises(UserError, match=r"one_vs_rest reads the matrix of the output layer.*tuning\.lora\.targets"):
        numeric.losses(tuned, inputs, targets_bt, gate=1.0)
    numeric.add(tuned, numeric.Settings(NUMBER))
    assert float(numeric.losses(tuned, inputs, targets_bt, gate=0.5)[0]) > 0


def test_models_that_change_their_logits_are_refused() -> None:
    model = Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=0.3))
    with pytest.raises(UserError, match="Gemma2ForCausalLM changes its logits"):
        numeric.add(model, numeric.Settings(NUMBER))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_opens_with_its_numbers(family: str, tmp_path: Any) -> None:
    model = trained(build(family, token_loss="one_vs_rest", value_space="linear", threshold=0.5))
    register()
    model.save_pretrained(tmp_path)
    inputs, targets_bt = batch()
    opened = numeric.AutoNumericLM.from_pretrained(tmp_path).eval()
    assert type(opened).__name__ == type(FAMILIES[family]()).__name__
    layer = None if family == "lstm" else 1  # of two
    assert numeric.settings_of(opened.config) == numeric.Settings(NUMBER, "linear", "one_vs_rest", 0.5, True, layer)
    assert torch.equal(opened(**inputs).logits, model(**inputs).logits)
    again = copy.deepcopy(opened)
    numeric.add(again, numeric.Settings(NUMBER, "linear", "one_vs_rest", 0.5))  # keeps the weights
    assert numeric.losses(again, inputs, targets_bt, 0.5) == numeric.losses(model, inputs, targets_bt, 0.5)


def test_values_may_have_any_type() -> None:
    model, (inputs, _) = trained(build()), batch()
    inputs["values"] = inputs["values"].float()
    exact = model(**{**inputs, "values": inputs["values"].double()}).logits
    torch.testing.assert_close(model(**inputs).logits, exact)


def test_a_folder_of_an_older_version_is_refused(tmp_path: Any) -> None:
    build().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["numeric"].pop("version") == 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"an older version .* train it again"):
        numeric.AutoNumericLM.from_pretrained(tmp_path)


def test_a_model_without_numbers_opens_as_ever(tmp_path: Any) -> None:
    plain = FAMILIES["llama"]()
    plain.save_pretrained(tmp_path)
    assert type(numeric.AutoNumericLM.from_pretrained(tmp_path)) is LlamaForCausalLM
    assert type(numeric.AutoNumericLM.from_config(plain.config)) is LlamaForCausalLM


@pytest.mark.parametrize("space", ["linear", "asinh"])
def test_a_small_model_learns_to_copy_the_number_that_is_asked_for(space: str) -> None:
    """Of two named numbers, in training from 0.1 to 100; afterwards also 100 times larger ones (decision 0027)."""
    torch.manual_seed(0)
    sizes = {**SMALL, "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
    numeric.add(model, numeric.Settings(NUMBER, value_space=space))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)

    def rows(count: int, least: float) -> tuple[dict[str, Any], Tensor]:
        """[name, number, name, number, ask, name, number] with the target of the last."""
        names_b2 = torch.rand(count, 20).argsort(1)[:, :2] + 10
        values_b2, which_b1 = least * 1000 ** torch.rand(count, 2).double(), torch.randint(2, (count, 1))
        number_b, ask_b = torch.full((count,), NUMBER), torch.full((count,), 5)
        ids = [names_b2[:, 0], number_b, names_b2[:, 1], number_b, ask_b, names_b2.gather(1, which_b1)[:, 0], number_b]
        values_bt = torch.zeros(count, 7, dtype=torch.float64)
        values_bt[:, [1, 3]], values_bt[:, 6:] = values_b2, values_b2.gather(1, which_b1)
        targets_bt = torch.full((count, 7), -100)
        targets_bt[:, 5] = NUMBER
        return {"input_ids": torch.stack(ids, 1), "values": values_bt, "use_cache": False}, targets_bt

    def error(least: float) -> float:
        found = numeric.predictions(model, *rows(200, least))
        return float(((found.values.quantiles([0.5])[0] - found.value_m).abs() / found.value_m).median())

    assert error(0.1) > 0.2
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, step / 50) * (1 - step / 400)
        _, value = numeric.losses(model, *rows(32, 0.1), gate=1.0)
        optimizer.zero_grad()
        (value / 32).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert error(0.1) < 1e-6
    assert error(10.0) < 1e-6
    model.numeric.pointer.own.data.fill_(1e4)  # without copies
    assert error(0.1) > 0.1


def test_half_precision_changes_no_sum_and_no_choice() -> None:
    """Mixed precision multiplies in bfloat16, and sharded training casts all parameters; a wrapper casts inputs."""
    model = trained(build())
    model.numeric.to(torch.bfloat16).float()  # representable in both
    inputs, _ = batch()
    hidden_nd, at_m = torch.randn(18, 16), torch.arange(8)
    offered = pointer.offers(inputs["input_ids"] == NUMBER, inputs["values"], None, torch.asinh)

    def values() -> Values:
        found: Values = model.numeric.values(
            hidden_nd, hidden_nd, at_m, model.numeric.location(hidden_nd[at_m]), offered
        )
        return found

    expected = values()
    assert expected.copies is not None
    with torch.autocast("cpu", torch.bfloat16):
        mixed = values()
        weights_ck = torch.cat(mixed.copies.weights())  # type: ignore[union-attr]
    torch.testing.assert_close(weights_ck, torch.cat(expected.copies.weights()), rtol=0, atol=0)
    torch.testing.assert_close(mixed[:2], expected[:2], rtol=0, atol=0)
    model.numeric.to(torch.bfloat16)
    cast = values()
    torch.testing.assert_close(cast[:2], expected[:2], rtol=0, atol=0)
    torch.testing.assert_close(torch.cat(cast.copies.weights()), weights_ck, rtol=0, atol=0)  # type: ignore[union-attr]


def test_wrappers_do_not_cast_values() -> None:
    model, (inputs, targets_bt) = trained(build()), batch()
    inputs["values"][:, 1:3] = 1e300
    expected = numeric.losses(model, inputs, targets_bt, 1.0)

    def cast(_: Any, __: Any, keywords: dict[str, Any]) -> Any:
        return (), {
            k: x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in keywords.items()
        }

    model.register_forward_pre_hook(cast, with_kwargs=True)
    assert numeric.losses(model, inputs, targets_bt, 1.0) == expected
