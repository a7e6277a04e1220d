"""The equalities on CUDA in bf16 and fp16: `pytest -m gpu`, for whoever has a GPU. One GPU is enough, more are used.

Packed rows go through FlashAttention: torch's own (`torch.nn.attention.varlen`), or the packages where installed.
"""

from __future__ import annotations

import json

import pytest
import torch
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from tests.support.inject import VARIABLE
from tests.support.training_runs import ROOT, arguments, launch, metrics, write_rows
from tests.support.tuned_runs import tiny_model
from train.checkpoint import commit

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
# bf16 holds three significant digits, fp16 four; sums over tokens average the rest out. Norms are of such gradients.
TOLERANCE = {"train/loss": 2e-3, "validation/loss": 2e-3, "train/gradient_norm": 2e-2}
SPREAD = ["ddp", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "fsdp2"]
LORA = {"tuning__kind": "lora", "tuning__lora__rank": 4}
TUNINGS = {
    "full": {},
    "lora": LORA,
    "qlora": LORA | {"tuning__quantization": "nf4"},
    "int8": LORA | {"tuning__quantization": "int8"},
    "prompt": {"tuning__kind": "prompt"},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    tiny_model(folder / "base", "qwen2", vocabulary=2048, hidden_size=64, intermediate_size=128)
    return write_rows(folder)


def run(rows, name, config="one_gpu", precision="bf16", **options):
    """(folder, what was said) of a run on as many GPUs as its configuration can use."""
    ranks = 1 if config in ("one_gpu", "cpu") else torch.cuda.device_count()
    chosen = {
        "run__precision": precision,
        "batch__tokens_per_micro_batch": 256 if ranks > 1 else 512,
    }
    if "tuning__quantization" in options:  # random start values cannot be quantised
        chosen |= {"model__path": rows.parent / "base", "model__init": "pretrained"}
    environment = {key: options.pop(key) for key in list(options) if key.isupper()}
    words = arguments(rows.parent / name, rows, **chosen | options)
    done = launch(words, config, ranks, timeout=400, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return rows.parent / name, done.stderr


def train(rows, name, config="one_gpu", **options):
    folder, _ = run(rows, name, config, **options)
    return {metric: metrics(folder, metric) for metric in TOLERANCE}


def assert_close(one, other, factor=1.0):
    for metric, values in one.items():
        assert len(values) >= 2
        assert values.keys() == other[metric].keys()
        for step, value in values.items():
            assert other[metric][step] == pytest.approx(value, rel=factor * TOLERANCE[metric]), (metric, step)


@pytest.fixture(scope="module")
def reference(rows):
    return train(rows, "reference", model__attention="sdpa")


def test_it_is_the_training_of_a_cpu(rows, reference):
    """Float32 without any of it: what all others are compared with is right itself."""
    exact = train(rows, "exact", "cpu", precision="fp32", CUDA_VISIBLE_DEVICES="")
    assert_close(exact, reference, factor=3)


def test_micro_batches_and_accumulation(rows, reference):
    assert_close(reference, train(rows, "micro", model__attention="sdpa", batch__tokens_per_micro_batch=128))


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention(rows, reference, name):
    available = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    if not available[name]():
        pytest.skip(f"{name} is not installed")
    assert_close(reference, train(rows, name, model__attention=name))


def test_packed_and_padded(rows):
    whole = {"batch__tokens_per_step": 100_000, "batch__tokens_per_micro_batch": 512, "duration__max_epochs": 3}
    assert_close(
        train(rows, "packed", batch__layout="packed", **whole), train(rows, "padded", batch__layout="padded", **whole)
    )


@pytest.mark.parametrize("config", SPREAD)
def test_every_sharding(rows, reference, config):
    assert_close(reference, train(rows, config, config, batch__tokens_per_micro_batch=256))


@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3", "fsdp2"])
def test_sharded_lora(rows, config):
    alone = train(rows, f"{config}-lora-alone", **LORA)
    assert_close(alone, train(rows, f"{config}-lora", config, batch__tokens_per_micro_batch=256, **LORA))


@pytest.mark.parametrize("tuning", ["lora", "qlora", "int8", "prompt"])
def test_every_tuning_with_other_micro_batches(rows, tuning):
    alone = train(rows, f"{tuning}-alone", **TUNINGS[tuning])
    small = train(rows, f"{tuning}-small", batch__tokens_per_micro_batch=128, **TUNINGS[tuning])
    assert_close(alone, small, factor=3 if tuning == "int8" else 1)  # int8 rounds activations by their neighbours


def cut_and_continued(rows, name, config, **options):
    """(uninterrupted, stopped in step 3 and resumed) losses; moments or scale that were lost would show in them."""
    options = {"optim__learning_rate": 3e-3, "duration__max_epochs": 2, **options}
    whole = train(rows, f"{name}-whole", config, **options)
    orders = json.dumps([{"at": "train.engine.loop:Loop._update", "nth": 3, "do": "SIGTERM"}])
    plug = {VARIABLE: orders, "PYTHONPATH": str(ROOT / "tests" / "support" / "plug")}
    folder, _ = run(rows, f"{name}-cut", config, **options, **plug)
    assert commit.steps(folder / "checkpoints")[-1] == 3
    _, said = run(rows, f"{name}-cut", config, **options)
    assert "resumed from" in said
    return whole, {metric: metrics(folder, metric) for metric in TOLERANCE}


@pytest.mark.parametrize(
    ("config", "tuning"),
    [
        ("one_gpu", "full"),
        ("one_gpu", "qlora"),
        ("one_gpu", "prompt"),
        ("ddp", "lora"),
        ("zero2", "full"),
        ("zero3", "lora"),
        ("fsdp2", "full"),
    ],
)
def test_resumed_equals_uninterrupted(rows, config, tuning):
    assert_close(*cut_and_continued(rows, f"{config}-{tuning}", config, **TUNINGS[tuning]))


@pytest.mark.parametrize("config", ["one_gpu", "ddp", "zero1", "zero3", "fsdp2"])
def test_fp16_with_loss_scaling(rows, reference, config):
    """Finite, equal to bf16 but for rounding, and resumed with the scale that it had."""
    options = {"precision": "fp16", "run__max_skipped_steps": 3}
    found = train(rows, f"{config}-fp16", config, **options)
    skipped = metrics(rows.parent / f"{config}-fp16", "train/skipped_steps")
    if not skipped[max(skipped)]:  # a first scale that is too high skips steps, and the losses after it are behind
        assert_close(reference, found, factor=3)
    assert found["validation/loss"][max(skipped)] < found["validation/loss"][0]
    assert_close(*cut_and_continued(rows, f"{config}-fp16-resume", config, **options))


@pytest.mark.parametrize("config", ["one_gpu", "fsdp2"])
def test_the_loss_scale_is_in_the_checkpoint(rows, config):
    """DeepSpeed keeps its own; tests/process/test_state.py asks the same of loss scaling on a CPU."""
    folder, _ = run(rows, f"{config}-scale", config, precision="fp16", duration__max_steps=2)
    last = commit.folder_of(folder / "checkpoints", 2)
    name = "fsdp/scaler.json" if config == "fsdp2" else "optimizer.json"
    saved = json.loads((last / name).read_text())
    assert (saved if config == "fsdp2" else saved["scaler"])["scale"] >= 1.0


def test_one_gpu_takes_the_fast_attention(rows, monkeypatch):
    """Float32 weights under autocast, the default of full training, reach the kernel over all documents at once."""
    from zerotune.models import attention

    calls = []
    inner = attention._variable_length
    monkeypatch.setattr(attention, "_variable_length", lambda *a: calls.append(a[0].dtype) or inner(*a))
    heads = [torch.randn(1, n, 24, 64, device="cuda", requires_grad=True) for n in (4, 2, 2)]
    heads[2] = heads[2].bfloat16()
    starts = torch.tensor([0, 7, 24], dtype=torch.int32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        out, _ = attention.document_attention(torch.nn.Module(), *heads, None, cu_seq_lens_q=starts)
    fits = torch.cuda.get_device_capability() >= (8, 0)
    assert calls == [torch.bfloat16] * fits
    assert out.dtype == torch.bfloat16
