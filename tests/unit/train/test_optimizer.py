"""The learning rate as a function of the step, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train.config import OptimConfig
from train.engine.optimizer import build_optimizer, learning_rate
from train.registry import OPTIMIZERS, TUNINGS
from zerotune.common.errors import UserError


def rates(total=100, **options):
    config = OptimConfig(learning_rate=1.0, **options)
    return [learning_rate(step, total, config) for step in range(total)]


def test_warmup_rises_linearly_and_never_wastes_a_step_at_zero():
    assert rates(warmup_steps=4)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_cosine_passes_half_way_and_ends_at_its_final_share():
    course = rates(schedule="cosine", warmup_steps=0, final_fraction=0.1)
    assert course[50] == pytest.approx(0.55)
    assert course[-1] == pytest.approx(0.1, abs=0.001)
    assert course == sorted(course, reverse=True)


def test_linear_and_constant():
    assert rates(schedule="linear", warmup_steps=0)[25] == pytest.approx(0.75)
    assert set(rates(schedule="constant", warmup_steps=0)) == {1.0}


def test_warmup_fraction_is_of_all_steps():
    assert rates(total=200, warmup_fraction=0.05)[9] == pytest.approx(1.0)
    assert rates(total=200, warmup_fraction=0.05)[8] == pytest.approx(0.9)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_learns_and_spares_vectors_from_decay(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 1))
    optimizer = build_optimizer(model, OptimConfig(name=name, learning_rate=1e-2, weight_decay=0.5), "single")
    decayed = {p.ndim for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    spared = {p.ndim for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]}
    assert (decayed, spared) == ({2}, {1})
    x = torch.randn(32, 64)
    losses = []
    for _ in range(15):
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_decay_spares_the_vectors_of_a_tuned_prompt():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from train.config import PromptConfig, TuningConfig
    from train.tuning.prompt import Prompt

    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = LlamaForSequenceClassification(LlamaConfig(vocab_size=64, **tiny))
    tuned = Prompt(TuningConfig(kind="prompt", prompt=PromptConfig(virtual_tokens=3)), task="SEQ_CLS").apply(base)
    names = {id(p): name for name, p in tuned.named_parameters()}
    undecayed = TUNINGS["prompt"].undecayed
    groups = build_optimizer(tuned, OptimConfig(weight_decay=0.1), "single", undecayed).param_groups
    decayed = [names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]]
    spared = [names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]]
    assert any("score" in name for name in decayed)
    assert [name for name in decayed if "prompt" in name] == []
    assert any("prompt_encoder" in name for name in spared)


def test_nothing_to_train_is_said_at_once():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="no parameter is trained"):
        build_optimizer(model, OptimConfig(), "single")


@pytest.mark.parametrize(
    ("name", "sharding"),
    [("adafactor", "zero-1"), ("adafactor", "zero-3"), ("adafactor", "fsdp"), ("adamw_8bit", "fsdp")],
)
def test_what_fails_on_shards_is_refused(name, sharding):
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match=rf"optim\.name: {name} cannot be used with {sharding}"):
        build_optimizer(model, OptimConfig(name=name), sharding)
    build_optimizer(model, OptimConfig(name=name), "ddp")
    build_optimizer(model, OptimConfig(), sharding)


def test_float16_weights_are_not_trained():
    with pytest.raises(UserError, match=r"model\.weights: float16"):
        build_optimizer(nn.Linear(2, 2).half(), OptimConfig(), "single")
    build_optimizer(nn.Linear(2, 2).half(), OptimConfig(), "zero-2")
