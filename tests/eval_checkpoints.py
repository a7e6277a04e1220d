"""Tiny random checkpoints for the tests of `eval`, made from nothing: no shared data, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Beijing is the capital of China. What is the capital of France? It is Paris.",
    "敏捷的棕色狐狸跳过了懒狗。北京是中国的首都，巴黎是法国的首都。",
]


def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of some 350 tokens, with ChatML's tokens and template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    made.chat_template = template
    return made


def model(vocabulary: int, seed: int = 0, context_tokens: int = 128) -> Any:
    """A random Llama with large weights, so that its predictions differ clearly."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_tokens,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def save(folder: Path, seed: int = 0, template: str | None = CHATML, context_tokens: int = 128) -> Path:
    """A checkpoint folder."""
    words = tokenizer(template)
    model(len(words), seed, context_tokens).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def log_probs(network: Any, ids: list[int]) -> torch.Tensor:
    """log p of ids[1:], each given all before it: the plain way, whole logits, one row."""
    with torch.no_grad():
        logits_tv = network(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    return logits_tv.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
