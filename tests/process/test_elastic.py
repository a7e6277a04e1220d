"""A checkpoint under another number of ranks: the same bits, for every way in which the state can be spread."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training_runs import environment, in_session

# The kind of sharding on two ranks, on one and on three; and the rest of the case (see state_cases.Case).
CASES = (
    "ddp ddp ddp qwen2 full adamw fp32",
    "zero-1 zero-1 zero-1 llama full adamw bf16",
    "zero-2 zero-2 zero-2 qwen2 full adamw bf16",
    "zero-2 zero-2 zero-2 llama lora adamw fp32",
    "zero-3 zero-3 zero-3 qwen2 full adamw fp32",
    "zero-3 zero-3 zero-3 llama lora adamw bf16",
    "zero-1 zero-3 zero-2 qwen2 full adamw fp32",
    "fsdp fsdp fsdp qwen2 full adamw fp32",
    "fsdp fsdp fsdp llama lora adamw fp32",
)
REFUSED = "zero-2 zero-2 zero-2 qwen2 full adamw_8bit fp32"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    command = [sys.executable, "-m", "tests.support.elastic_cases", str(folder), *CASES, REFUSED]
    code, output = in_session(command, environment(), 570)
    assert code == 0, output[-8000:]
    return folder


def states(folder: Path, case: str) -> list[dict[str, Any]]:
    return [torch.load(folder / case / f"phase{number}.pt", weights_only=False) for number in range(3)]


@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_there_again(case: str, outcomes: Path) -> None:
    """Weights, both moments, steps taken and the group's options, from two ranks to one and to three."""
    saved, *loaded = states(outcomes, case)
    tensors = {name for name, value in saved.items() if isinstance(value, torch.Tensor)}
    assert len(tensors) > 30
    assert all(saved[name].abs().max() > 0 for name in tensors)
    for state in loaded:
        assert state.keys() == saved.keys()
        assert [name for name in sorted(tensors) if not torch.equal(state[name], saved[name])] == []
        assert all(state[name] == saved[name] for name in saved.keys() - tensors)


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_from_there(case: str, outcomes: Path) -> None:
    """The first rank computes the same loss in each phase: what it computes with is what was loaded, too."""
    first = [torch.load(outcomes / case / f"losses{number}.pt")["losses"][0] for number in range(3)]
    assert first == pytest.approx([first[0]] * 3, rel=1e-3 if "bf16" in case else 1e-5)


def test_blocks_of_an_8_bit_optimizer_are_refused(outcomes: Path) -> None:
    message = (outcomes / REFUSED / "phase1.txt").read_text()
    assert "8-bit optimizer" in message
    assert "2 processes" in message
