"""Writes the tables of docs/planning.md: which sharding fits for models of 0.5 to 72 billion parameters.

    python examples/make_planning_tables.py

A test compares some of the rows with the page.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tempfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from transformers import Qwen2Config

from train.config import BatchConfig, Config, DataConfig, DurationConfig, ModelConfig, RunConfig, TuningConfig
from train.plan.launch import layout_of, read_files
from train.plan.plan import Machine, Model, plan, read_model, with_changes
from zerotune.common.byte_sizes import GB
from zerotune.common.markdown import table

PAGE = ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- tables: python examples/make_planning_tables.py -->\n", "<!-- end of the tables -->\n"
GPUS = (8, 64, 256, 1024)
MACHINE = Machine(80 * GB, "H100")
LENGTH, STEP, RUN = 4096, 2**22, 10**9  # tokens
LAUNCHES = ("ddp", "zero1", "zero2", "zero3")
# Width, feed-forward width, layers, heads, key-value heads, vocabulary, tied embeddings: of Qwen2.5's config.json.
SIZES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "0.5 B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5 B": (1536, 8960, 28, 12, 2, 151936, True),
    "7 B": (3584, 18944, 28, 28, 4, 152064, False),
    "14 B": (5120, 13824, 48, 40, 8, 152064, False),
    "32 B": (5120, 27648, 64, 40, 8, 152064, False),
    "72 B": (8192, 29568, 80, 64, 8, 152064, False),
}


def recipe(folder: Path, kind: str) -> Config:
    """A run of a billion tokens in rows of 4096."""
    return Config(
        run=RunConfig(folder=str(folder), precision="bf16"),
        model=ModelConfig(path=str(folder)),
        data=DataConfig(max_length_tokens=LENGTH),
        batch=BatchConfig(tokens_per_step=STEP, tokens_per_micro_batch=LENGTH),
        tuning=TuningConfig(kind),
        duration=DurationConfig(max_tokens=RUN),
    )


def read(size: str, kind: str, folder: Path) -> Model:
    """A model of the table."""
    width, inner, layers, heads, key_values, vocabulary, tied = SIZES[size]
    config: Any = Qwen2Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_values, tie_word_embeddings=tied,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    config.save_pretrained(folder)
    return read_model(recipe(folder, kind))


def cell(model: Model, gpus: int) -> str:
    """The first setting that fits, without checkpointing before with it."""
    for checkpointing, launch in product((False, True), LAUNCHES):
        changed = with_changes(model.config, {"model.gradient_checkpointing": checkpointing})
        known = dataclasses.replace(model, config=changed)
        found = plan(known, layout_of(read_files(launch), gpus, 2), MACHINE)
        if found.fits(MACHINE):
            return f"{launch}{' c' if checkpointing else ''}, {found.memory / GB:.0f} GB"
    return "-"


def rows(kind: str, sizes: Iterable[str] = SIZES) -> list[list[str]]:
    """One for each size."""
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            model = read(size, kind, Path(folder))
            one = plan(model, layout_of(read_files("ddp"), GPUS[0], 2), MACHINE)
            assert one.seconds is not None
            hours = one.seconds * GPUS[0] / 3600
            found.append([size, f"{one.trained:,}", f"{hours:,.0f}", *(cell(model, gpus) for gpus in GPUS)])
    return found


def tables() -> str:
    """Both tables, as Markdown."""
    heads = ["size", "trained parameters", "GPU hours", *(f"{gpus:,} GPUs" for gpus in GPUS)]
    parts = [f"{title}\n\n{table(heads, rows(kind), right=heads)}\n" for title, kind in (
        ("All weights:", "full"), ("LoRA of rank 16:", "lora"),
    )]  # fmt: skip
    return "\n".join(parts)


def on_page() -> str:
    """What the page has between its marks."""
    found = re.search(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def main() -> None:
    """Replace the tables of the page."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.replace(f"{BEGIN}{on_page()}{END}", f"{BEGIN}{tables()}{END}"), encoding="utf-8")


if __name__ == "__main__":
    main()
