"""The size of a batch: set by the user or by free memory, and halved when memory runs out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import torch

from zerotune.common.errors import UserError

SHARE_OF_FREE = 0.5  # the rest covers what the estimate leaves out: fragmentation, other programs
# Larger batches are not faster (measured with 135M parameters on two cores).
MOST_ON_CPU = {"tokens": 4096, "cached": 32768, "packed": 1024}
MOST_ON_GPU = {"tokens": 65536, "cached": 1 << 20, "packed": 2048}
OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory")  # CPU allocators raise a plain RuntimeError

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass
class Budget:
    """Maximum token positions of one batch, padding included.

    tokens: in one forward pass. cached: in the KV cache, with room for the tokens that are still to be generated.
    packed: in one packed row, not counting the shared prefix.
    """

    tokens: int
    cached: int
    packed: int

    def rows(self, length: int) -> int:
        """How many rows of `length` token positions fit into one forward pass; at least one."""
        return max(self.tokens // max(length, 1), 1)

    def shrink(self, error: BaseException, tokens: int, rows: int) -> None:
        """Halve the budget after `error` in a batch of `rows` rows and `tokens` token positions.

        Raises `error` if it is not about memory, and UserError if a single row does not fit.
        """
        if not _out_of_memory(error):
            raise error
        if rows == 1:
            raise UserError(
                f"one request of {tokens} tokens does not fit into memory ({error}); use fewer processes, "
                "--quantization, or a shorter --window_tokens or --max_new_tokens"
            ) from error
        self.tokens = max(min(self.tokens, tokens) // 2, 1)
        self.packed = min(self.packed, self.tokens)
        self.cached = max(self.cached // 2, 1)
        torch.cuda.empty_cache()


def choose_budget(batch_tokens: int, config: Any, dtype: torch.dtype, device: torch.device) -> Budget:
    """`batch_tokens`, or if it is 0 what free memory allows; call it after the weights are loaded.

    config: the transformers configuration; its sizes give the bytes of a token position.
    """
    most = MOST_ON_GPU if device.type == "cuda" else MOST_ON_CPU
    if batch_tokens:
        return Budget(batch_tokens, batch_tokens, min(batch_tokens, most["packed"]))
    return budget_of(free_bytes(device), config, dtype, most)


def budget_of(free: int, config: Any, dtype: torch.dtype, most: Mapping[str, int]) -> Budget:
    """What `free` bytes allow, up to `most`."""
    room = SHARE_OF_FREE * free
    activation, cache = bytes_of_token(config.get_text_config(), dtype)
    tokens = int(min(room / 2 / (activation + cache), most["tokens"]))
    cached = int(min(room / 2 / cache, most["cached"]))
    return Budget(max(tokens, 1), max(cached, 1), max(min(tokens, most["packed"]), 1))


def bytes_of_token(config: Any, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of one token position: activations of one layer, and keys and values of all layers."""
    width = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_size = int(getattr(config, "head_dim", None) or width // heads)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    cache = 2 * kv_heads * head_size * int(config.num_hidden_layers) * dtype.itemsize
    # One layer at a time: residual, norm (in fp32), queries, repeated keys and values, gate, up and their product.
    activation = (4 * width + 4 * heads * head_size + 4 * inner) * dtype.itemsize + 2 * 4 * width
    return activation, cache


def free_bytes(device: torch.device) -> int:
    """Free memory of this process; on a CPU, free memory divided by the processes of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def in_batches(
    rows: Sequence[Row], length: Callable[[Row], int], budget: Budget, run: Callable[[list[Row]], Result]
) -> Iterator[Result]:
    """Run batches of `rows`, longest first, and yield each result; a batch that runs out of memory is split.

    length: the token positions of a row.
    """
    waiting = sorted(rows, key=length, reverse=True)
    while waiting:
        longest = length(waiting[0])
        batch = waiting[: budget.rows(longest)]
        try:
            result = run(batch)
        except (RuntimeError, MemoryError) as error:
            budget.shrink(error, longest * len(batch), len(batch))
            continue
        del waiting[: len(batch)]
        yield result


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY_TEXTS)
