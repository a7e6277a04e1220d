"""`python -m eval --plan ...`: memory of an evaluation before it starts, from config.json alone."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.config import Config, parse
from zerotune.common.byte_sizes import CUDA_CONTEXT, bytes_of, gigabytes
from zerotune.common.errors import UserError
from zerotune.common.mask_secrets import printable
from zerotune.models.find_folder import require_model

if TYPE_CHECKING:
    from zerotune.inference.requests import Head

PLAN, MEMORY = "--plan", "--gpu-memory"


def main(arguments: Sequence[str]) -> None:
    """Print the plan. Raises UserError."""
    words, memory, rest = list[str](), "80GB", [word for word in arguments if word != PLAN]
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name != MEMORY:
            words.append(f"{name}{equals}{value}")
            continue
        memory = value if equals else rest.pop(0) if rest else ""
    config = parse(words)
    for folder in config.folders:
        if not Path(folder).is_dir():
            raise UserError(f"{folder}: there is no such folder")
        require_model(Path(folder), with_weights=False)
    plans = [_planned(config, folder, bytes_of(memory, MEMORY)) for folder in config.folders]
    sys.stdout.write(printable("\n\n".join(plans) + "\n"))


def _planned(config: Config, folder: str, memory: int) -> str:
    """Of one checkpoint, as lines of 80 columns."""
    from transformers import AutoConfig

    from zerotune.inference.batch_size import MOST_ON_GPU, budget_of, bytes_of_token
    from zerotune.models.precision import DTYPES

    dtype = DTYPES["bf16" if config.precision == "auto" else config.precision]
    found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    weights = max(_weights(config, found, head, dtype) for head in {task.head for task in config.chosen_tasks})
    activation, cache = bytes_of_token(found.get_text_config(), dtype)
    free = memory - weights - CUDA_CONTEXT
    rows = [("weights", gigabytes(weights)), ("CUDA context (estimate)", gigabytes(CUDA_CONTEXT))]
    longest = getattr(found.get_text_config(), "max_position_embeddings", None)
    if free > 0:
        budget = budget_of(free, found, dtype, MOST_ON_GPU)
        rows += [
            ("left for batches", gigabytes(free)),
            ("a position in the cache", f"{cache / 1e6:,.3f} MB"),
            ("largest batch", f"{budget.tokens:,} positions in a forward pass, {budget.cached:,} in the cache"),
        ]
    if longest:
        rows.append(
            ("a request of the full context", f"{longest:,} tokens, {gigabytes(longest * (activation + cache))}")
        )
    lines = [f"{folder}: {dtype}, {config.quantization}, {gigabytes(memory)} of memory".replace("torch.", ""), ""]
    lines += [
        textwrap.fill(text, 80, initial_indent=f"  {name:<32}", subsequent_indent=" " * 34) for name, text in rows
    ]
    return "\n".join([*lines, "", _verdict(free, longest, activation + cache)])


def _weights(config: Config, found: Any, head: Head, dtype: Any) -> int:
    """Bytes of the model that a task needs."""
    import torch

    from zerotune.inference.checkpoint import LOADERS
    from zerotune.models.quantized_size import quantized_bytes, quantized_weights

    try:
        with torch.device("meta"):
            model = LOADERS[head][0].from_config(found, trust_remote_code=False)
    except ValueError as error:
        raise UserError(f"a {found.model_type} has no weights for this task: {str(error).splitlines()[0]}") from error
    packed = quantized_weights(model) if config.quantization != "none" else set()
    return sum(
        quantized_bytes(tuple(p.shape), config.quantization, double=False)
        if id(p) in packed
        else p.numel() * dtype.itemsize
        for p in model.parameters()
    )


def _verdict(free: int, longest: int | None, position: int) -> str:
    if free <= 0:
        return "It does NOT fit: try --quantization nf4, or more memory."
    if longest and longest * position > free:
        return f"It fits for requests of up to {free // position:,} tokens; longer ones run out of memory."
    return "It fits; batches adapt to the memory. Time is not known: the data is not read."
