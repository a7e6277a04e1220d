"""The plan's memory against `torch.cuda.max_memory_allocated` of real runs: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from tests.support.planned_runs import base_model, corpus, measured, options, planned, tensors

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
TUNINGS = {"full": {}, "lora": {"tuning__kind": "lora"}}
MEMORY = {
    "packed": {"batch__layout": "packed"},
    "padded": {"batch__layout": "padded"},
    "checkpointing": {"model__gradient_checkpointing": "true"},
}
SHARDED = ["ddp", "zero1", "zero2", "zero3", "fsdp2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    base_model(folder / "base", hidden_size=1024, intermediate_size=2816, num_hidden_layers=16)
    corpus(folder)
    return folder


def compare(folder, name, accelerate, ranks, changes):
    words = options(
        folder / name, folder / "base", folder / "text.jsonl", tokens=16_384, run__precision="bf16", **changes
    )
    found = measured(words, accelerate, ranks)
    assert tensors(planned(words, accelerate, ranks)) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_one_gpu(folder, tuning, memory):
    compare(folder, f"{tuning}-{memory}", "one_gpu", 1, TUNINGS[tuning] | MEMORY[memory])


@pytest.mark.parametrize("accelerate", SHARDED)
def test_all_gpus(folder, accelerate):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    compare(folder, accelerate, accelerate, torch.cuda.device_count(), {})
