"""Answers in fp32 on CUDA are those of a CPU: `pytest -m gpu`, for whoever has a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support import eval_checkpoints, eval_families
from zerotune.inference.model import LanguageModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("family", [*eval_families.SHARING, "mamba, a state"])
@pytest.mark.parametrize("size", [16, 100_000])
def test_answers_are_those_of_a_cpu(family: str, size: int) -> None:
    words, requests = eval_checkpoints.tokenizer(), [*eval_families.scores(), *eval_families.generates()]
    found: list[dict[int, Any]] = []
    for device in ("cpu", "cuda"):
        model = LanguageModel(eval_families.network(family).to(device), words)
        assert model.network.shares_prefixes == (family in eval_families.SHARING)
        found.append(dict(model.answers(requests, eval_families.budget(size))))
    for k in range(len(eval_families.scores())):
        assert found[1][k].log_prob == pytest.approx(found[0][k].log_prob, abs=1e-4)
        assert found[1][k].greedy == found[0][k].greedy
    for k in range(len(eval_families.scores()), len(requests)):
        assert found[1][k] == found[0][k]
