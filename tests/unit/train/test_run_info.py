"""run.json, secrets, and the arithmetic behind model FLOPs utilisation."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from train.engine import run_info
from train.engine.flops import known_peak, model_flops_per_token, peak_flops
from zerotune.common.files import json_object
from zerotune.common.mask_secrets import hide_secrets, mask, mask_all

ROOT = Path(__file__).parents[3]
SAY_COMMAND = "from train.engine.run_info import command; print('COMMAND', command())"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("SOME_API_KEY", "canary")
    factory, hook = logging.getLogRecordFactory(), sys.excepthook
    yield "canary"
    logging.setLogRecordFactory(factory)
    sys.excepthook = hook


def test_later_facts_join_earlier_ones(tmp_path: Path) -> None:
    run_info.write(tmp_path, started="a", world_size=2, config={"run": {"seed": 1}})
    run_info.write(tmp_path, started="b", ended="c", world_size=4)
    assert json_object(tmp_path / "run.json") == {
        "started": "a",
        "ended": "c",
        "world_size": 4,
        "config": {"run": {"seed": 1}},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_torn_record_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"started": "a", ')
    run_info.write(tmp_path, seed=1)
    assert json_object(tmp_path / "run.json") == {"seed": 1}


def test_circumstances_hold_versions_and_command_but_no_environment(
    tmp_path: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train/main.py", "--note", f"x={secret}"])
    monkeypatch.setenv("HARMLESS_NAME", "but-not-ours-to-tell")
    run_info.write(tmp_path, **run_info.circumstances(torch.device("cpu")))
    text = (tmp_path / "run.json").read_text()
    facts = json.loads(text)
    assert torch.__version__.startswith(facts["versions"]["torch"])  # which may go on with +cpu or +cu130
    assert facts["versions"]["peft"]
    assert facts["command"][1:] == ["train/main.py", "--note", "x=***"]
    assert facts["started"].endswith("Z")
    assert secret not in text
    assert "but-not-ours-to-tell" not in text


def test_secrets_are_masked_everywhere_but_short_values_stay(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("LONGER_TOKEN", f"{secret}-and-more")
    assert mask("false canary canary-and-more") == "false *** ***"
    assert mask_all({"a": ["canary", 1, None], "canary": ("x", "canary")}) == {
        "a": ["***", 1, None],
        "***": ("x", "***"),
    }


def test_log_records_and_tracebacks_are_masked(secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    hide_secrets()
    hide_secrets()  # twice is once
    logger = logging.getLogger("a.library.with.its.own.handler")
    logger.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        logger.error("plain canary")
        logger.error("argument %s", "canary")
        try:
            raise ValueError("canary inside")
        except ValueError:
            logger.exception("failed")
        logger.error("a broken format %s %s", "canary")
    finally:
        logger.removeHandler(handler)
    err = capsys.readouterr().err
    assert "plain ***" in err
    assert "argument ***" in err
    assert "ValueError: *** inside" in err


def test_an_uncaught_exception_is_masked() -> None:
    code = "from zerotune.common.mask_secrets import hide_secrets; hide_secrets(); raise RuntimeError('key is canary')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"MY_SECRET": "canary"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "RuntimeError: key is ***" in done.stderr
    assert "canary" not in done.stderr


def tiny(tied: bool = False) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100, hidden_size=16, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied,
        )
    )  # fmt: skip


LAYERS = 3 * (16 * 32 + 2 * 16 * 16 + 32 * 16 + 3 * 16 * 40)  # q, k and v, o, gate/up/down
HEAD = 16 * 100


@pytest.mark.parametrize("tied", [False, True])
def test_flops_of_full_training(tied: bool) -> None:
    model = tiny(tied)
    attention = 12 * 3 * 4 * 8 * 50
    assert model_flops_per_token(model, 50) == 6 * (LAYERS + HEAD) + attention
    assert model_flops_per_token(model, 50, head_share=0.25) == 6 * (LAYERS + HEAD / 4) + attention


def test_flops_of_lora_and_of_a_module_trained_in_full() -> None:
    model = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapter = 3 * 2 * (16 + 32)
    assert model_flops_per_token(model, 0) == 4 * (LAYERS + HEAD) + 6 * adapter
    saved = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert model_flops_per_token(saved, 0) == 4 * LAYERS + 6 * (adapter + HEAD)


def test_flops_agree_with_the_operations_that_run() -> None:
    """PyTorch's own counter over forward and backward; it counts attention over the whole square."""
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny()
    model.set_attn_implementation("eager")
    tokens_bt = torch.randint(100, (1, 12))
    with FlopCounterMode(display=False) as counter:
        model(tokens_bt, use_cache=False).logits.sum().backward()
    assert counter.get_total_flops() == 12 * model_flops_per_token(model, 12)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla T4", None),  # no bf16
        ("NVIDIA L40", None),
    ],
)
def test_peaks_by_name(name: str, tflops: int | None) -> None:
    assert known_peak(name, torch.bfloat16) == (None if tflops is None else tflops * 1e12)


def test_fp16_of_older_cards() -> None:
    assert known_peak("Tesla T4", torch.float16) == 65e12
    assert known_peak("Tesla V100-SXM2-16GB", torch.float16) == 125e12


def test_peak_of_this_machine_and_as_configured() -> None:
    measured = peak_flops(torch.device("cpu"), torch.float32)
    assert 1e9 < measured.flops < 1e15
    assert measured.source == "measured matrix product"
    assert peak_flops(torch.device("cpu"), torch.bfloat16, peak_tflops=1.5).flops == 1.5e12


def test_the_command_is_the_launcher_s(tmp_path: Path) -> None:
    script = tmp_path / "say.py"
    script.write_text(SAY_COMMAND, encoding="utf-8")
    arguments = [
        "launch",
        "--config_file",
        str(ROOT / "accelerate_configs/cpu.yaml"),
        str(script),
        "--note",
        "two words",
    ]
    for start, expected in (
        ([str(Path(sys.executable).parent / "accelerate"), *arguments], ["accelerate", *arguments]),
        ([sys.executable, str(script)], [Path(sys.executable).name, str(script)]),
    ):
        done = subprocess.run(
            start, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
        )
        assert f"COMMAND {expected}" in done.stdout
