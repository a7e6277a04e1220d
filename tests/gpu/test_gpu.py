"""The equalities in bf16 on CUDA: `pytest -m gpu`, for whoever has a GPU."""

from __future__ import annotations

import pytest
import torch
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from tests.process.runs import arguments, launch, metrics, write_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TOLERANCE = 2e-3  # bf16 holds three significant digits; sums over tokens average the rest out
BF16 = {"run__precision": "bf16", "optim__learning_rate": 1e-4}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("gpu"))


def train(rows, name, config="one_gpu", ranks=1, **options):
    folder = rows.parent / name
    done = launch(arguments(folder, rows, **BF16, **options), config, ranks, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {metric: metrics(folder, metric) for metric in ("train/loss", "validation/loss")}


def assert_close(one, other):
    for metric, values in one.items():
        assert values.keys() == other[metric].keys()
        for step, value in values.items():
            assert other[metric][step] == pytest.approx(value, rel=TOLERANCE), (metric, step)


@pytest.fixture(scope="module")
def reference(rows):
    return train(rows, "reference", model__attention="sdpa")


def test_micro_batches(rows, reference):
    assert_close(reference, train(rows, "micro", model__attention="sdpa", batch__tokens_per_micro_batch=128))


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention(rows, reference, name):
    available = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    if not available[name]():
        pytest.skip(f"{name} is not installed")
    assert_close(reference, train(rows, name, model__attention=name))


def test_packed_and_padded(rows):
    whole = {"batch__tokens_per_step": 100_000, "duration__max_epochs": 3}
    assert_close(
        train(rows, "packed", batch__layout="packed", **whole), train(rows, "padded", batch__layout="padded", **whole)
    )


@pytest.mark.parametrize("config", ["ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp2"])
def test_all_gpus(rows, reference, config):
    ranks = torch.cuda.device_count()
    if config in ("ddp", "fsdp2") and ranks < 2:
        pytest.skip(f"{config} needs two GPUs")
    assert_close(reference, train(rows, config, config, ranks, batch__tokens_per_micro_batch=256))
