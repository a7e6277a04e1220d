"""The hidden states in the middle of a model are those that transformers gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.models.test_numeric import FAMILIES, SMALL
from zerotune.models.middle_states import kept, last_kept, middle_layer, watch

IDS = torch.arange(10).view(2, 5)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "lstm"])
def test_states_are_those_of_transformers(family: str) -> None:
    model = FAMILIES[family]().eval()
    assert middle_layer(model) == 1  # of two
    watch(model, 1)
    with kept() as found:
        states = model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
        assert torch.equal(last_kept(), states[1])
    assert len(found) == 1
    model(input_ids=IDS)  # outside, nothing is kept
    assert len(found) == 1


def test_recurrent_families_have_none() -> None:
    assert middle_layer(FAMILIES["lstm"]()) is None


@pytest.mark.parametrize(("layers", "below"), [(1, 1), (2, 1), (3, 2), (30, 15)])
def test_half_of_the_layers_are_below(layers: int, below: int) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{**SMALL, "num_hidden_layers": layers}))
    assert middle_layer(model) == below


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_are_computed_again_add_nothing(reentrant: bool) -> None:
    gradients: list[Any] = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = FAMILIES["llama"]().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        watch(model, 1)
        with kept() as found:
            logits = model(input_ids=IDS, use_cache=False).logits
            (logits.square().mean() + last_kept().square().mean()).backward()
        assert len(found) == 1
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)
