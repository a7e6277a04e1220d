"""Grouped attention is sdpa's attention, to the rounding of bfloat16."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from zerotune.inference.causal_lm import Network
from zerotune.models import cpu_attention
from zerotune.models.cpu_attention import NAME, grouped_attention

ROUNDING = 0.01  # bfloat16 keeps 8 bits of weights and scores


def module(groups: int) -> SimpleNamespace:
    return SimpleNamespace(num_key_value_groups=groups, is_causal=True)


def inputs(rows: int, queries: int, keys: int, heads: tuple[int, int] = (6, 2), size: int = 24) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(rows, heads[0], queries, size), (rows, heads[1], keys, size), (rows, heads[1], keys, size)]
    return [torch.randn(shape).bfloat16() for shape in shapes]


def exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None) -> Tensor:
    output = F.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask=None if mask is None else mask.float(),
        is_causal=mask is None, scale=scaling, enable_gqa=True,
    )  # fmt: skip
    return output.transpose(1, 2)


@pytest.mark.parametrize("scores_at_once", [1, 5_000, 2**21])
@pytest.mark.parametrize(("rows", "queries", "keys"), [(1, 40, 90), (3, 17, 17), (2, 33, 64)])
def test_masked_calls_are_exact_attention(
    monkeypatch: pytest.MonkeyPatch, rows: int, queries: int, keys: int, scores_at_once: int
) -> None:
    monkeypatch.setattr(cpu_attention, "SCORES_AT_ONCE", scores_at_once)
    query, key, value = inputs(rows, queries, keys)
    sees = torch.rand(rows, 1, queries, keys) < 0.3
    sees[..., 0] = True  # every query sees something
    mask = torch.zeros(sees.shape, dtype=torch.bfloat16).masked_fill_(~sees, torch.finfo(torch.bfloat16).min)
    found, _ = grouped_attention(module(3), query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found.float(), exact(query, key, value, mask, 0.3), atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("scores_at_once", [1, 40_000, 2**21])
def test_keys_of_other_lines_are_left_out_of_a_pack(monkeypatch: pytest.MonkeyPatch, scores_at_once: int) -> None:
    monkeypatch.setattr(cpu_attention, "SCORES_AT_ONCE", scores_at_once)
    prefix, line, lines = 50, 20, 6
    tokens = line * lines
    query, key, value = inputs(1, tokens, prefix + tokens)
    at = torch.arange(tokens)
    own = (at[None] <= at[:, None]) & (at[None] // line == at[:, None] // line)
    sees = torch.cat([torch.ones(tokens, prefix, dtype=torch.bool), own], 1)[None, None]
    mask = torch.zeros(sees.shape, dtype=torch.bfloat16).masked_fill_(~sees, torch.finfo(torch.bfloat16).min)
    found, _ = grouped_attention(module(3), query, key, value, mask)
    torch.testing.assert_close(found.float(), exact(query, key, value, mask), atol=ROUNDING, rtol=ROUNDING)
    for view in cpu_attention._views(mask, line):  # blocks that are lines see nothing else
        assert (view.free, view.keys) == (prefix, slice(prefix + view.queries.start, prefix + view.queries.stop))


@pytest.mark.parametrize("scores_at_once", [1, 3_000, 2**21])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 16), (2, 61)])
def test_calls_without_a_mask_are_causal(
    monkeypatch: pytest.MonkeyPatch, rows: int, tokens: int, scores_at_once: int
) -> None:
    monkeypatch.setattr(cpu_attention, "SCORES_AT_ONCE", scores_at_once)
    query, key, value = inputs(rows, tokens, tokens)
    found, _ = grouped_attention(module(3), query, key, value, None)
    torch.testing.assert_close(found.float(), exact(query, key, value, None), atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("queries", [1, 15])
def test_few_queries_are_left_to_sdpa(monkeypatch: pytest.MonkeyPatch, queries: int) -> None:
    monkeypatch.setattr(cpu_attention, "sdpa_attention_forward", lambda *given, **named: "sdpa")
    query, key, value = inputs(1, queries, 90)
    mask = torch.zeros(1, 1, queries, 90, dtype=torch.bfloat16)
    assert grouped_attention(module(3), query, key, value, mask) == "sdpa"


@pytest.mark.parametrize("changed", [{"dropout": 0.1}, {"softcap": 5.0}, {"is_causal": False}])
def test_what_it_does_not_know_is_left_to_sdpa(monkeypatch: pytest.MonkeyPatch, changed: dict[str, float]) -> None:
    monkeypatch.setattr(cpu_attention, "sdpa_attention_forward", lambda *given, **named: "sdpa")
    assert grouped_attention(module(3), *inputs(1, 20, 20), None, **changed) == "sdpa"


def tiny(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def test_only_a_bfloat16_model_on_a_cpu_gets_it() -> None:
    for dtype, expected in ((torch.bfloat16, NAME), (torch.float32, "sdpa")):
        model = tiny(dtype)
        cpu_attention.use(model)
        assert model.config._attn_implementation == expected


def test_a_model_answers_as_with_sdpa_and_still_shares_prefixes() -> None:
    model, ids_bt = tiny(torch.bfloat16), torch.arange(80).reshape(2, 40) % 64
    with torch.inference_mode():
        before = model(input_ids=ids_bt).logits.float()
        cpu_attention.use(model)
        after = model(input_ids=ids_bt).logits.float()
    assert (after - before).norm() <= 0.02 * before.norm()
    assert Network(model).shares_prefixes
