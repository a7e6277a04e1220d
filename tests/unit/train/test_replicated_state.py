from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Adafactor

from train.checkpoint import replicated_state
from zerotune.common.errors import UserError


class Net(nn.Module):
    """Tied weights, a frozen layer, buffers that change and one that is not kept."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(64, 64)
        self.norm = nn.BatchNorm1d(64)
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.tied = nn.Linear(64, 64, bias=False)
        self.tied.weight = self.inner.weight
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, x_bt: torch.Tensor) -> torch.Tensor:
        return self.tied(torch.relu(self.frozen(self.norm(self.inner(x_bt)))))


OPTIMIZERS: dict[str, Callable[[list[Any]], torch.optim.Optimizer]] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "adamw fused": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
    "adamw tensor rate": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(1e-2)),
    "adamw 8 bit": lambda groups: AdamW8bit(groups, lr=1e-2, min_8bit_size=512),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, lr=1e-2),
    "adafactor of transformers": lambda groups: Adafactor(groups, lr=1e-2, relative_step=False, beta1=0.9),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
}


def build(name: str, seed: int) -> tuple[Net, torch.optim.Optimizer]:
    model = Net(seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return model, OPTIMIZERS[name](groups)


def train(model: Net, optimizer: torch.optim.Optimizer, first: int, last: int, scaler: Any = None) -> list[float]:
    losses = []
    for step in range(first, last):
        x_bt = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
        loss = model(x_bt).square().mean()
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def frozen_like(model: Net, other: Net) -> None:
    """The frozen part comes from the base model, not from the checkpoint."""
    model.frozen.load_state_dict(other.frozen.state_dict())


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_everything_comes_back_to_the_last_bit(name: str, steps: int, tmp_path: Path) -> None:
    model, optimizer = build(name, seed=1)
    train(model, optimizer, 0, steps)
    replicated_state.write(replicated_state.contents(model, optimizer, None), tmp_path)
    expected = train(model, optimizer, steps, steps + 4)

    again, other = build(name, seed=2)
    frozen_like(again, model)
    assert train(again, other, 9, 9 + steps) != expected[:steps] or steps == 0  # the target has a state of its own
    replicated_state.load_model(again, tmp_path)
    replicated_state.load_optimizer(again, other, None, tmp_path)
    assert train(again, other, steps, steps + 4) == expected
    for (key, first), (_, second) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(first, second), key
    assert again.tied.weight is again.inner.weight


def test_an_optimizer_that_never_stepped_takes_a_state(tmp_path: Path) -> None:
    model, optimizer = build("adamw 8 bit", seed=1)
    train(model, optimizer, 0, 3)
    replicated_state.write(replicated_state.contents(model, optimizer, None), tmp_path)
    again, other = build("adamw 8 bit", seed=1)
    replicated_state.load_model(again, tmp_path)
    replicated_state.load_optimizer(again, other, None, tmp_path)
    assert train(again, other, 3, 6) == train(model, optimizer, 3, 6)
    tables = [state["qmap1"] for state in other.state.values() if "qmap1" in state]
    assert len(tables) >= 1
    assert all(table is tables[0] for table in tables)


def test_only_what_training_changes_is_stored(tmp_path: Path) -> None:
    model, optimizer = build("adamw", seed=1)
    train(model, optimizer, 0, 1)
    replicated_state.write({replicated_state.MODEL: replicated_state.trained_state(model)}, tmp_path)
    saved = load_file(tmp_path / replicated_state.MODEL)
    assert set(saved) == {
        "inner.weight", "inner.bias", "norm.weight", "norm.bias",
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip
    assert saved["norm.num_batches_tracked"].item() == 1
    assert set(replicated_state.trained_weights(tmp_path)) == set(saved)


def test_the_loss_scale_comes_back(tmp_path: Path) -> None:
    model, optimizer = build("adamw", seed=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=2)
    train(model, optimizer, 0, 5, scaler)
    replicated_state.write(replicated_state.contents(model, optimizer, scaler), tmp_path)
    expected, scale = train(model, optimizer, 5, 8, scaler), scaler.get_scale()

    again, other = build("adamw", seed=2)
    frozen_like(again, model)
    fresh = torch.amp.GradScaler("cpu", init_scale=2.0**3, growth_interval=2)
    replicated_state.load_model(again, tmp_path)
    replicated_state.load_optimizer(again, other, fresh, tmp_path)
    assert train(again, other, 5, 8, fresh) == expected
    assert fresh.get_scale() == scale
    with pytest.raises(UserError, match=r"run\.precision"):
        replicated_state.load_optimizer(again, other, None, tmp_path)


def saved_run(folder: Path) -> tuple[Net, torch.optim.Optimizer]:
    model, optimizer = build("adamw", seed=1)
    train(model, optimizer, 0, 2)
    replicated_state.write(replicated_state.contents(model, optimizer, None), folder)
    return model, optimizer


def test_a_model_that_does_not_fit_is_named(tmp_path: Path) -> None:
    model, _ = saved_run(tmp_path)
    tensors = load_file(tmp_path / replicated_state.MODEL)
    for change, words in (
        ({k: v for k, v in tensors.items() if k != "inner.bias"}, "has no 'inner.bias'"),
        ({**tensors, "extra.weight": torch.zeros(2)}, "has 'extra.weight'"),
        ({**tensors, "inner.bias": torch.zeros(3)}, r"inner\.bias is torch\.float32 \[3\]"),
        ({**tensors, "inner.bias": tensors["inner.bias"].half()}, r"inner\.bias is torch\.float16"),
    ):
        save_file(change, tmp_path / replicated_state.MODEL)
        with pytest.raises(UserError, match=words):
            replicated_state.load_model(model, tmp_path)


def test_an_optimizer_that_does_not_fit_is_named(tmp_path: Path) -> None:
    model, optimizer = saved_run(tmp_path)
    with pytest.raises(UserError, match=r"state of AdamW, this run uses SGD"):
        replicated_state.load_optimizer(model, build("sgd", 1)[1], None, tmp_path)
    path = tmp_path / replicated_state.OPTIMIZER_REST
    rest = json.loads(path.read_text())
    rest["groups"][1]["params"].remove("norm.bias")
    path.write_text(json.dumps(rest))
    with pytest.raises(UserError, match=r"has no 'norm\.bias'"):
        replicated_state.load_optimizer(model, optimizer, None, tmp_path)
    rest["groups"][0]["params"].append("norm.bias")
    path.write_text(json.dumps(rest))
    with pytest.raises(UserError, match="groups"):
        replicated_state.load_optimizer(model, optimizer, None, tmp_path)
