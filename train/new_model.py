"""A model from scratch: its configuration and its tokenizer become a model folder, RUN/base, that training starts from.

Its weights are drawn with run.seed when it is loaded (init: random). Whatever comes after takes it as any other model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from transformers import GenerationConfig

from train.checkpoint import commit
from train.config import Config
from train.data.label_encoder import LabelSpec
from train.data.learn_tokenizer import learn_tokenizer
from train.data.rank_sync import together
from train.models.load import load_tokenizer
from train.protocols import Ranks
from zerotune.models.numeric import add_token

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def prepare(config: Config, ranks: Ranks) -> list[str]:
    """Write RUN/base where the recipe names a family; lines for the user, on the first rank. A collective.

    A run with checkpoints keeps the one that it started from: a recipe that asks for another one is refused when the
    run resumes.
    """
    if config.model.family is None:
        return []
    return together(ranks, lambda: _write(config) if ranks.index == 0 else [])


def _write(config: Config) -> list[str]:
    run, model = Path(config.run.folder), config.model
    base = Path(model.within(run).path)
    if base.is_dir() and commit.steps(run / "checkpoints"):
        return []
    draft = base.with_name(f"{base.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    lines: list[str] = []
    if model.tokenizer:
        tokenizer: Any = load_tokenizer(model)
    else:
        tokenizer, lines = learn_tokenizer(config.tokenizer, config.data, config.run.seed, LabelSpec.of(config))
        if config.spec.numbers:
            add_token(tokenizer)
        tokenizer.save_pretrained(draft)
    tokens = {"vocab_size": len(tokenizer), **{name: getattr(tokenizer, name) for name in TOKENS}}
    assert model.spec is not None
    model_config = resolve_name(model.spec.place)(model, config.data.max_length_tokens, tokens)
    model_config.save_pretrained(draft)
    GenerationConfig(**{name: tokens[name] for name in TOKENS}).save_pretrained(draft)
    shutil.rmtree(base, ignore_errors=True)
    draft.rename(base)
    return lines
