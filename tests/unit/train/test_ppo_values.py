"""A value model beside the policy: its values and gradients, and models that cannot be one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, Qwen2Config, Qwen2Model

from tests.support.training_runs import TINY
from tests.unit.train.test_ppo import tiny, trajectories
from train.config import Config, ModelConfig, RunConfig
from train.config_ppo import PpoConfig
from train.data.micro_batches import Shape, collate
from train.objectives.ppo.loss import losses
from train.objectives.ppo.value_model import load_value_model
from zerotune.common.errors import UserError
from zerotune.models import attention, loss_head
from zerotune.models.token_statistics import ValueHead, add_value_head, token_loss, token_statistics

PACKED = Shape(True, 1000, 1000, 100, True, 0)
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def body(vocabulary: int = 90) -> Any:
    torch.manual_seed(3)
    config = Qwen2Config(vocab_size=vocabulary, num_key_value_heads=1, initializer_range=0.3, **SIZES)
    return Qwen2Model._from_config(config, attn_implementation=attention.NAME)


def policy() -> Any:
    model = tiny()
    add_value_head(model, body())
    torch.nn.init.normal_(model.value_head.head.weight)
    return model


@pytest.mark.parametrize("packed", [True, False])
def test_value_model_loss_and_gradients(packed: bool) -> None:
    """As written out over each answer alone, by the value model as transformers runs it."""
    model, rows, config = policy(), trajectories(), PpoConfig(value_clip=0.1)
    batch = collate(rows, list(range(len(rows))), replace(PACKED, packed=packed), filler=0)
    found = token_statistics(model, batch.inputs, batch.targets)
    order = list(rows.places(range(len(rows))))
    assert order == list(range(len(found.value_n)))
    generator = torch.Generator().manual_seed(5)
    then = {name: torch.randn(len(order), generator=generator) for name in ("log_p", "reference", "value", "target")}
    then |= {"advantage": torch.zeros(len(order)), "weight": torch.ones(len(order))}
    value_loss = losses(found, then, config, 0.0)["value"]
    value_loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.value_head.named_parameters()}
    assert all(p.grad is None or not p.grad.any() for name, p in model.named_parameters() if "value_head" not in name)

    model.zero_grad()
    total = torch.zeros(())
    for index, trajectory in enumerate(rows.trajectories):
        ids = torch.tensor([[*trajectory.prompt, *trajectory.response]])
        hidden_td = model.value_head.body(input_ids=ids).last_hidden_state[0, len(trajectory.prompt) - 1 : -1]
        value_t = hidden_td @ model.value_head.head.weight
        own = slice(int(rows.starts[index]), int(rows.starts[index + 1]))
        assert torch.allclose(found.value_n[own], value_t, atol=1e-5)
        target_t, old_t = then["target"][own], then["value"][own]
        near_t = old_t + (value_t - old_t).clamp(-0.1, 0.1)
        total = total + 0.5 * torch.maximum((value_t - target_t) ** 2, (near_t - target_t) ** 2).sum()
    assert float(value_loss.detach()) == pytest.approx(config.value_weight * float(total.detach()), rel=1e-5)
    (config.value_weight * total).backward()
    for name, parameter in model.value_head.named_parameters():
        assert gradients[name].any(), name
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-4), name


@pytest.mark.parametrize("own", [False, True])
def test_supervised_loss_gives_values_zero_gradients(own: bool) -> None:
    model, plain, rows = tiny(), tiny(), trajectories()
    add_value_head(model, body() if own else None)
    batch = collate(rows, [0, 1], PACKED, filler=0)
    loss, expected = (
        score(m, batch.inputs, batch.targets) for score, m in ((token_loss, model), (loss_head.token_loss, plain))
    )
    loss.backward()
    expected.backward()
    assert float(loss.detach()) == float(expected.detach())
    assert all(p.grad is not None and not p.grad.any() for p in model.value_head.parameters())
    own_gradients = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, own_gradients[name].grad), name


def config_for(folder: Path) -> Config:
    model = ModelConfig(path=str(TINY), init="random")
    settings: dict[str, Any] = {"ppo": PpoConfig(value_model=str(folder))}
    return Config(objective="ppo", run=RunConfig(precision="fp32"), model=model, **settings)


def with_tokenizer(folder: Path) -> Path:
    for file in TINY.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def load(folder: Path) -> Any:
    attention.register()
    return load_value_model(config_for(folder), AutoTokenizer.from_pretrained(TINY), 100, True, torch.device("cpu"))


def test_unsuitable_value_models_are_refused(tmp_path: Path) -> None:
    vocabulary = len(AutoTokenizer.from_pretrained(TINY))
    fit, small, encoder, other = (tmp_path / name for name in ("fit", "small", "encoder", "other"))
    body(vocabulary).save_pretrained(fit)
    found = load(with_tokenizer(fit))
    assert torch.equal(found.embed_tokens.weight, body(vocabulary).embed_tokens.weight)

    body(vocabulary - 1).save_pretrained(small)
    with pytest.raises(UserError, match=r"ppo\.value_model: .* has embeddings for"):
        load(with_tokenizer(small))

    BertModel(BertConfig(vocab_size=vocabulary, **SIZES)).save_pretrained(encoder)
    with pytest.raises(UserError, match=r"ppo\.value_model: .* is an encoder"):
        load(with_tokenizer(encoder))

    shutil.copytree(fit, other)
    described = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    words = described["model"]["vocab"]
    first, second = list(words)[300:302]
    words[first], words[second] = words[second], words[first]
    (other / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(UserError, match=r"ppo\.value_model: the policy's token .* both need the same tokenizer"):
        load(other)


def test_value_head_is_float32_under_autocast() -> None:
    head = ValueHead(64)
    torch.manual_seed(0)
    torch.nn.init.normal_(head.weight)
    hidden_nd = torch.randn(50, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found_n = head(hidden_nd)
    assert found_n.dtype == torch.float32
    assert torch.allclose(found_n.double(), hidden_nd.double() @ head.weight.double(), atol=1e-5)
