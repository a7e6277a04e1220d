"""Starting real training runs from tests: the same commands a user types, a tiny random model, and what they wrote."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from train.engine import deepspeed_ops

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "examples" / "models" / "tiny-qwen2"
BIN = Path(sys.executable).parent

# Short and long rows in two languages, so that packs, ragged ends and fillers all occur.
QUESTIONS = [
    {
        "question": f"What is {i} plus {i + 1}?" + " Please think about it." * (i % 5),
        "answer": f"It is {2 * i + 1}." * (1 + i % 3),
    }
    for i in range(28)
] + [{"question": f"{i}加{i}等于多少？", "answer": f"等于{2 * i}。"} for i in range(20)]


def write_rows(folder: Path) -> Path:
    """A small data set in `qa` format."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in QUESTIONS), encoding="utf-8")
    return path


def arguments(folder: Path, rows: Path, **options: object) -> list[str]:
    """Command-line options of a short run into `folder`; `options` use __ for the dot."""
    chosen = {
        "run.folder": folder,
        "run.precision": "fp32",
        "model.path": TINY,
        "model.init": "random",
        "data.train": json.dumps([{"path": str(rows), "format": "qa"}]),
        "data.validation_fraction": 0.2,
        "data.cache_folder": rows.parent / "cache",
        "data.max_length_tokens": 128,
        "batch.tokens_per_step": 512,
        "batch.tokens_per_micro_batch": 512,
        "optim.learning_rate": 1e-3,
        "validation.samples": 0,
        "watch.tensorboard": "false",
        "merge.at_end": "false",
    }
    chosen |= {name.replace("__", "."): value for name, value in options.items()}
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def new_model(family: str) -> dict[str, object]:
    """Options of `arguments` for a small model from scratch."""
    bounded = {"model__bptt_tokens": 20} if family in ("rnn", "lstm") else {}
    sizes = {"model__width": 32, "model__layers": 2, "tokenizer__vocabulary_size": 300}
    return {"model__path": "", "model__family": family, **sizes, **bounded}


def environment(**extra: str) -> dict[str, str]:
    """Two workers on two cores: one thread each, and no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": f"{BIN}:{os.environ['PATH']}", **extra}


@functools.cache
def build_operator() -> None:
    """Have DeepSpeed's operator for CPU ranks compiled, once on a machine: not on the time that a test grants a run."""
    if not any(deepspeed_ops.folder().glob("*/*.so")):
        code = "from train.engine.deepspeed_ops import build_for_cpu; build_for_cpu()"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=True)


def launch(
    words: list[str], config: str | None = None, ranks: int = 1, timeout: float = 180, **extra: str
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch [--config_file accelerate_configs/CONFIG.yaml] train/main.py ...`, or plain Python without
    a config.
    """
    start = [sys.executable]
    if config is not None:
        if config.startswith("zero") and "TORCH_EXTENSIONS_DIR" not in extra:
            build_operator()
        file = str(ROOT / "accelerate_configs" / f"{config}.yaml")
        start = [
            str(BIN / "accelerate"),
            "launch",
            "--config_file",
            file,
            "--num_processes",
            str(ranks),
            "--main_process_port",
            "0",
        ]
    return subprocess.run(
        [*start, str(ROOT / "train" / "main.py"), *words],
        cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def in_session(command: list[str], variables: dict[str, str], seconds: float) -> tuple[int, str]:
    """(exit code, all output) of a command in a session of its own; none of its processes outlives the time."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def metrics(folder: Path, name: str) -> dict[int, float]:
    """step -> value of one metric of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def pretrained_stand_in(folder: Path, **sizes: int) -> Path:
    """The tiny model with weights, all of them random. In 4 bit a CPU wants inputs of whole blocks of 64."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(TINY, folder)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(TINY, intermediate_size=128, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
