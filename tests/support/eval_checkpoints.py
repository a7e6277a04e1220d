"""Tiny random checkpoints for the tests of `eval`, made from nothing: no shared data, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

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


def config(vocabulary: int, context_tokens: int = 128, **changes: Any) -> LlamaConfig:
    """Of a tiny Llama with large weights, so that its predictions differ clearly."""
    return LlamaConfig(
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
        **changes,
    )


def model(vocabulary: int, seed: int = 0, context_tokens: int = 128) -> Any:
    """A random Llama."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config(vocabulary, context_tokens)).eval()


def save(folder: Path, seed: int = 0, template: str | None = CHATML, context_tokens: int = 128) -> Path:
    """A checkpoint folder."""
    words = tokenizer(template)
    model(len(words), seed, context_tokens).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def save_tagger(folder: Path, seed: int, tags: list[str]) -> Path:
    """A checkpoint folder with a token-classification head; its classes are `tags`."""
    words = tokenizer()
    torch.manual_seed(seed)
    LlamaForTokenClassification(config(len(words), id2label=dict(enumerate(tags)))).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


ENCODER_WORDS = "[PAD] [UNK] [CLS] [SEP] paris lyon the city of is a big cat 北京".split()
ENCODER_CONTEXT = 12


def save_encoder(folder: Path) -> Path:
    """A tiny random BERT without a pooler, as many sentence encoders are saved."""
    core = Tokenizer(models.WordLevel({word: k for k, word in enumerate(ENCODER_WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=len(ENCODER_WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=ENCODER_CONTEXT,
        initializer_range=0.5,
    )
    BertModel(sizes, add_pooling_layer=False).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]").save_pretrained(folder)
    return folder


def log_probs(network: Any, ids: list[int]) -> torch.Tensor:
    """log p of ids[1:], each given all before it: the plain way, whole logits, one row."""
    with torch.no_grad():
        logits_tv = network(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    return logits_tv.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
