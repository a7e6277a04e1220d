"""Tiny random models of several families, and requests that share beginnings in every way; answers the plain way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    RecurrentGemmaConfig,
)

from tests.support import eval_checkpoints
from zerotune.inference.batch_size import Budget
from zerotune.inference.requests import Generate, Score
from zerotune.models.recurrent import LstmConfig, RnnConfig, register

register()
VOCABULARY = 300
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
    "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
OTHER: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "initializer_range": 0.3}
# Those whose prefixes can be shared, and why the others fall back to whole rows.
SHARING: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "gpt2, places of its own": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3
    ),
    "gemma2, sliding layers and a soft cap": lambda: Gemma2Config(
        **SIZES, sliding_window=8, final_logit_softcapping=2.0
    ),
    "mistral, all layers sliding": lambda: MistralConfig(**SIZES, sliding_window=8),
}
WHOLE: Mapping[str, Callable[[], Any]] = {
    "rnn, a state": lambda: RnnConfig(**OTHER | {"initializer_range": 2.0}),
    "lstm, two states": lambda: LstmConfig(**OTHER | {"initializer_range": 2.0}),
    "mamba, a state": lambda: MambaConfig(**OTHER, num_hidden_layers=2),
    "recurrent gemma, a state and windows": lambda: RecurrentGemmaConfig(
        **OTHER, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, head_dim=8, lru_width=32
    ),
    "gpt-neo, windows over slots": lambda: GPTNeoConfig(
        **OTHER, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8
    ),
    "bloom, distances from a mask": lambda: BloomConfig(**OTHER, n_layer=2, n_head=4),
}


def network(family: str) -> Any:
    """A model with clear preferences, in evaluation mode."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config((SHARING | WHOLE)[family]()).eval()
    made.generation_config = GenerationConfig()
    return made


def tokens(count: int, draw: torch.Generator) -> tuple[int, ...]:
    return tuple(torch.randint(3, VOCABULARY, (count,), generator=draw).tolist())


def scores() -> list[Score]:
    """Questions behind a few-shot block, with options of one token and of several; beginnings of others; strangers."""
    draw = torch.Generator().manual_seed(0)
    few_shot, made = tokens(40, draw), []
    for question in range(5):
        asked = few_shot + tokens(5 + question, draw)
        made += [Score(asked, (option,)) for option in (3, 4, 5, 6)]
        made += [Score(asked, tokens(3, draw), bytes=question) for _ in range(2)]
    made += [Score(few_shot[:size], few_shot[size : size + 4]) for size in (1, 9, 20)]
    made += [Score(tokens(size, draw), tokens(21 - size, draw)) for size in (1, 5, 17, 20)]
    return [*made, made[3]]


def generates() -> list[Generate]:
    """Their prompts, with limits of their own, some twice; and two that nothing else begins like."""
    draw = torch.Generator().manual_seed(1)
    shared = [Generate(one.prefix_ids, 5 + k % 4, (0, 2)) for k, one in enumerate(scores()[::3])]
    return [*shared, *(Generate(tokens(size, draw), 7, (0, 2)) for size in (3, 30)), shared[1]]


def plain_score(model: Any, request: Score) -> tuple[float, bool]:
    """One row, whole logits: the sum of log-probabilities, and whether greedy search would say the same."""
    ids, start = [*request.prefix_ids, *request.continuation_ids], len(request.prefix_ids)
    with torch.no_grad():
        best = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].argmax(-1)
    log_probs = eval_checkpoints.log_probs(model, ids)[start - 1 :]
    return float(log_probs.sum()), best.tolist() == list(request.continuation_ids)


def plain_continuation(model: Any, request: Generate) -> list[int]:
    """Greedy search by hand: one row, without cache or padding; up to the stop token or the limit."""
    ids = list(request.prefix_ids)
    for _ in range(request.max_new_tokens):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in request.stop_ids:
            break
        ids.append(token)
    return ids[len(request.prefix_ids) :]


def budget(size: int) -> Budget:
    """The same bound for everything."""
    return Budget(size, size, size)
