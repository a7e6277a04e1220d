"""Small real tokenizers, files and recipes for tests of the data path."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from train.config import DataConfig, SourceConfig
from train.data.label_encoder import TO_PREDICT
from train.data.prepare import Corpus, prepare

TEXTS = (
    "The quick brown fox jumps over the lazy dog. What is the capital of France? Paris is the capital of France.",
    "### User:\nHow are you today?\n\n### Assistant:\nI am fine, thank you. And what about you?",
    "你好，世界。今天天气很好，我们去公园散步吧。中国的首都是北京，法国的首都是巴黎。",
)
CHATML_MARKS = ("<|im_start|>", "<|im_end|>")


@cache
def _trained(marks: tuple[str, ...], trims: bool, bos: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<unk>", *marks]
    trainer = trainers.BpeTrainer(
        vocab_size=460,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    steps = [processors.ByteLevel(trim_offsets=trims)]
    if bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    tokenizer.post_processor = processors.Sequence(steps)
    return str(tokenizer.to_str())


def tokenizer(
    marks: tuple[str, ...] = CHATML_MARKS, trims: bool = True, bos: bool = False, **options: Any
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a little English and Chinese.

    marks: tokens for chat templates. trims: offsets leave white space out. bos: it writes <s> before every text.
    """
    settings = {"eos_token": "</s>", "bos_token": "<s>" if bos else None, "unk_token": "<unk>", **options}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained(marks, trims, bos)), **settings)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(cache_folder: Path, *train: SourceConfig, **options: Any) -> DataConfig:
    """A data section with its cache in `cache_folder`, tokenising in this process."""
    settings = {"max_length_tokens": 64, "chat_template": "plain", "workers": 1, **options}
    return DataConfig(train=list(train), cache_folder=str(cache_folder), **settings)


def corpus_of(folder: Path, rows: list[dict[str, Any]], form: str, using: Any = None, **options: Any) -> Corpus:
    """The rows, written as JSONL under `folder` and prepared."""
    from tests.support.ranks import Solo

    path = write_jsonl(folder / "rows.jsonl", rows)
    columns, label_spec = options.pop("columns", {}), options.pop("label_spec", TO_PREDICT)
    config = recipe(folder / "cache", SourceConfig(str(path), form, columns=columns), **options)
    return prepare(config, using or tokenizer(), 0, Solo(), label_spec)


def learned(corpus: Corpus, using: Any, row: int = 0) -> list[str]:
    """The decoded stretches of a row that are learned."""
    ids, labels = corpus.train.tokens(row)
    pieces: list[list[int]] = []
    for position, label in enumerate(labels.tolist()):
        if label == -100:
            continue
        assert label == ids[position]
        if position and labels[position - 1] != -100:
            pieces[-1].append(label)
        else:
            pieces.append([label])
    return [using.decode(piece) for piece in pieces]


def shared_data() -> Path:
    """The folder of public data sets that some tests use; skips the test where it is absent."""
    folder = Path(os.environ.get("ZEROTUNE_DATA") or Path(__file__).resolve().parents[2].parent / "shared" / "data")
    if not (folder / "alpaca").is_dir():
        pytest.skip(f"no public data sets in {folder}: set ZEROTUNE_DATA")
    return folder
