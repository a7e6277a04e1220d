"""Real runs whose peak memory is compared with the plan: long rows that fill micro-batches, all tokens learned."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.support.training_runs import arguments, launch, metrics
from tests.support.tuned_runs import tiny_model
from train.config import Config
from train.plan.launch import layout_of, read_files
from train.plan.plan import Machine, Plan, plan, read_model
from train.plan.weights import local_model, precision_of
from train.recipe import parse

SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}


def base_model(folder: Path, **sizes: int) -> Path:
    """27 million parameters, or other sizes."""
    return tiny_model(folder, "qwen2", vocabulary=2048, **SIZES | {"num_key_value_heads": 2} | sizes)


def corpus(folder: Path) -> Path:
    """One text of 60,000 words: its rows have the full length."""
    words, generator = "one two three four five six seven eight nine ten".split(), random.Random(0)
    path = folder / "text.jsonl"
    path.write_text(json.dumps({"text": " ".join(generator.choices(words, k=60_000))}) + "\n", encoding="utf-8")
    return path


def options(folder: Path, base: Path, rows: Path, tokens: int = 4096, **changes: object) -> list[str]:
    """The command line of a run of three steps, of two micro-batches on one rank."""
    chosen = {
        "model__path": base,
        "model__init": "pretrained",
        "data__train": json.dumps([{"path": str(rows), "format": "text"}]),
        "data__validation_fraction": 0,
        "data__max_length_tokens": 256,
        "batch__tokens_per_step": 2 * tokens,
        "batch__tokens_per_micro_batch": tokens,
        "duration__max_steps": 3,
        "checkpoint__asynchronous": "false",
    }
    return arguments(folder, rows, **chosen | changes)


def measured(words: list[str], config: str, ranks: int = 1) -> float:
    """Bytes of the fullest moment of the run, as it reports itself."""
    done = launch(words, config, ranks, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(words[words.index("--run.folder") + 1])
    return max(metrics(folder, "train/memory_gb").values()) * 2**30


def planned(words: list[str], accelerate: str, ranks: int = 1) -> Plan:
    """The plan of the same command."""
    config: Config = parse(words)
    with local_model(config) as known:
        item = 4 if precision_of(config) == "fp32" else 2
        return plan(read_model(known), layout_of(read_files(accelerate), ranks, item), Machine(80 * 10**9))


def tensors(found: Plan) -> int:
    """Bytes without the fixed estimates."""
    return sum(size for part, size in found.parts.items() if "estimate" not in part)
