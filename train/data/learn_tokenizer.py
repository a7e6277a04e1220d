"""Learns a tokenizer from the training rows: whole words, or byte pairs."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from train.config import DataConfig, TokenizerConfig
from train.data.held_out import draw_held_out, limit_of_held_out
from train.data.label_encoder import TO_PREDICT, LabelSpec
from train.data.mixture import Mark, Mixture
from train.data.rows import sampled
from train.data.setup import Spec, set_up
from train.data.sources import find
from train.data.tokenize import Encoder
from zerotune.common.errors import UserError
from zerotune.data.fields import RowError
from zerotune.data.numbers_in_text import NUM
from zerotune.data.raw_row import BadRow

UNKNOWN, END = "<unk>", "<eos>"
SPECIAL = (UNKNOWN, END)
MARKS = re.compile("|".join((*SPECIAL, NUM)))  # in a corpus that is tokenised already, or of numbers as tokens
LINE_END = Regex(rf"\s*({END}\s*)?\n\s*")
LONGEST_WORD = 256  # bytes of a word that byte pairs are learned from: the time grows with the square of its length
SAMPLE_TEXTS = 1000  # looked at for text without spaces
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]{12,}")  # more than a word has
UNSPACED_SHARE = 0.2  # of all characters


def learn_tokenizer(
    config: TokenizerConfig, data: DataConfig, seed: int, label_spec: LabelSpec = TO_PREDICT
) -> tuple[Any, list[str]]:
    """(tokenizer of transformers, lines for the user), from the rows that are learned; equal data give an equal one.

    Rows that are held out by data.validation_fraction are left out. A stream gives its first window.
    """
    is_corpus = all(source.format == "text" for source in data.train)
    fast = _untrained(config)
    specs = set_up(data, wrapped(fast), label_spec).train
    texts = _texts(specs, data, seed)
    first = list(itertools.islice(texts, SAMPLE_TEXTS))
    _train(fast, config, itertools.chain(first, texts))
    if config.kind == "word" and is_corpus:  # as in the Penn Treebank; only now, for it is no word to count
        ends = normalizers.Sequence([normalizers.Strip(right=False), normalizers.Replace(LINE_END, f" {END} ")])
        fast.normalizer = normalizers.Sequence([fast.normalizer, ends]) if config.lowercase else ends
    if first and fast.get_vocab_size() <= len(SPECIAL):
        raise UserError("tokenizer.kind: there is no word in the training rows")
    lines = [f"tokenizer: {fast.get_vocab_size():,} {_units(config)} learned from {_rows_named(data)}"]
    if config.kind == "word" and _unspaced_share(first) > UNSPACED_SHARE:
        lines.append(
            "WARNING tokenizer.kind: word takes what stands between spaces as a word, and much of this text is written "
            "without spaces (Chinese, Japanese, Thai): whole lines become single words, most of them unknown. Set "
            "tokenizer.kind: bpe, or put spaces between the words"
        )
    return wrapped(_with_words(fast)), lines


def _with_words(fast: Tokenizer) -> Tokenizer:
    """With <unk> as a word, which a trainer of the library makes special."""
    state = json.loads(fast.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] != UNKNOWN
    return Tokenizer.from_str(json.dumps(state))


def wrapped(fast: Tokenizer) -> Any:
    """As a tokenizer of transformers. <unk> is none of its special tokens, which are left out of generated text."""
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _untrained(config: TokenizerConfig) -> Tokenizer:
    """Without a vocabulary but for special tokens."""
    if config.kind == "bpe":
        fast = Tokenizer(models.BPE())
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
    else:
        fast = Tokenizer(models.WordLevel({UNKNOWN: 0, END: 1}, unk_token=UNKNOWN))
        split = [pre_tokenizers.Punctuation("isolated")] if config.split_punctuation else []
        fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), *split])
    if config.lowercase:
        fast.normalizer = normalizers.Lowercase()
    fast.add_special_tokens([_special(token, config) for token in SPECIAL])
    return fast


def _special(token: str, config: TokenizerConfig) -> AddedToken:
    """Of words, found after the ends of lines have become such."""
    return AddedToken(token, special=True, normalized=config.kind == "word")


def _train(fast: Tokenizer, config: TokenizerConfig, texts: Iterable[str]) -> None:
    options: dict[str, Any] = {
        "vocab_size": config.vocabulary_size,
        "special_tokens": [_special(token, config) for token in SPECIAL],
        "show_progress": False,
    }
    trainer: Any = trainers.WordLevelTrainer(**options)
    words = fast.pre_tokenizer
    if config.kind == "bpe":
        trainer = trainers.BpeTrainer(**options, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        fast.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(LONGEST_WORD)])
    marks = re.compile("|".join(SPECIAL), re.IGNORECASE if config.lowercase else 0)  # of a corpus tokenised already
    fast.train_from_iterator((marks.sub(" ", text) for text in texts), trainer)
    fast.pre_tokenizer = words


def _texts(specs: Sequence[Spec], data: DataConfig, seed: int) -> Iterator[str]:
    """The texts of all training rows, as they will be tokenised. Rows that cannot be read are passed over: they are
    reported when they are tokenised.
    """
    if data.streaming:
        sources = [find(spec.config, spec.key, streaming=True) for spec in specs]
        window = Mixture(sources, seed, 0, [Mark()] * len(sources)).take(data.streaming_window_rows)
        for spec, rows in zip(specs, window, strict=True):
            yield from (text for _, text in _read(spec, rows))
        return
    limit = _limit(specs, data, seed)
    for spec in specs:
        for number, text in _rows(spec, seed):
            if limit is None or draw_held_out(seed, spec.number, np.array([number]))[0] >= limit:
                yield text


def _limit(specs: Sequence[Spec], data: DataConfig, seed: int) -> np.uint64 | None:
    """Rows whose draw is below it are held out."""
    if data.validation or not data.validation_fraction:
        return None
    numbers = [np.fromiter((number for number, _ in _rows(spec, seed)), np.int64) for spec in specs]
    drawn = [draw_held_out(seed, spec.number, numbers_n) for spec, numbers_n in zip(specs, numbers, strict=True)]
    return limit_of_held_out(np.concatenate(drawn), data.validation_fraction)


def _rows(spec: Spec, seed: int) -> Iterator[tuple[int, str]]:
    source = find(spec.config, spec.key)
    return _read(spec, sampled(source.rows(), spec.config.fraction, seed, "fraction"))


def _read(spec: Spec, rows: Any) -> Iterator[tuple[int, str]]:
    encoder = Encoder(spec.settings)
    for row in rows:
        if not isinstance(row.item, BadRow):
            try:
                yield row.number, encoder.text(row.item)
            except RowError:
                continue


def _unspaced_share(texts: Sequence[str]) -> float:
    """The share of characters in runs of a script that puts no spaces between words."""
    return sum(len(run) for text in texts for run in UNSPACED.findall(text)) / max(sum(map(len, texts)), 1)


def _units(config: TokenizerConfig) -> str:
    return {"word": "words", "bpe": "byte pairs"}[config.kind]


def _rows_named(data: DataConfig) -> str:
    if data.streaming:
        return f"the first window of the stream ({data.streaming_window_rows:,} rows)"
    return "the training rows" + (" that are not held out" if data.validation_fraction else "")
