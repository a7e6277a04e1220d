"""What can be wrong with the keys of a model from scratch: `model.family` and its sizes, `tokenizer`."""

from __future__ import annotations

from dataclasses import fields

from train.config import Config, ModelConfig, TokenizerConfig
from train.model_sizes import sizes_of
from train.registry import FAMILIES, OBJECTIVES, TUNINGS, Problems

LEAST_BPE = 258  # 256 bytes, <unk> and <eos>
SIZES = ("depth", "width", "layers", "heads", "feed_forward", "bptt_tokens", "dropout", "tie_embeddings")


def problems(config: Config) -> Problems:
    """(key, message) for everything wrong."""
    model = config.model
    if model.spec is None:
        if not model.path.strip():
            yield "model.path", "is missing; give a folder in Hugging Face layout, a hub name, or model.family"
        yield from _unused(config)
        return
    if model.path:
        one = 'remove one of the two (--model.family null, or --model.path "")'
        yield "model.family", f"starts a new model, and model.path names {model.path}; {one}"
    if not config.spec.from_scratch:
        able = " or ".join(name for name, spec in OBJECTIVES.items() if spec.from_scratch)
        yield "model.family", f"a new model learns {able}, not {config.objective}; give model.path"
    if config.tuning.quantization != "none":
        yield "tuning.quantization", "the weights of a new model are random; set tuning.quantization: none"
    if config.tuning.extra_positions and not model.spec.has_attention:
        yield "tuning.kind", needs_attention(config, f"and {model.family} has none")
    for name in SIZES:
        users = [family for family, spec in FAMILIES.items() if name in spec.keys]
        if users and model.family not in users and getattr(model, name) != getattr(ModelConfig, name):
            yield f"model.{name}", f"applies only to {', '.join(users)} (model.family is {model.family}); remove it"
    yield from _indivisible(model)
    yield from _tokenizer_problems(config)
    yield from _target_problems(config)


def needs_attention(config: Config, lacks: str) -> str:
    """Why a tuning that puts vectors in front of a row (PEFT) cannot be used with a model, and what can."""
    able = " or ".join(name for name, spec in TUNINGS.items() if not spec.extra_positions(config.tuning))
    return f"{config.tuning.kind} tuning needs a model with attention, {lacks}; use {able}"


def _unused(config: Config) -> Problems:
    """Keys of a new model beside an existing one."""
    for name in SIZES:
        if getattr(config.model, name) != getattr(ModelConfig, name):
            yield f"model.{name}", "is the size of a new model; set model.family, or remove it"
    for key in _changed(config.tokenizer):
        yield key, "is of the tokenizer that a new model learns; set model.family, or remove it"


def _changed(tokenizer: TokenizerConfig) -> list[str]:
    default = TokenizerConfig()
    changed = [f.name for f in fields(tokenizer) if getattr(tokenizer, f.name) != getattr(default, f.name)]
    return [f"tokenizer.{name}" for name in changed]


def _indivisible(model: ModelConfig) -> Problems:
    sizes = sizes_of(model)
    if "heads" in FAMILIES[str(model.family)].keys and sizes.width % (2 * sizes.heads):
        key = "model.heads" if model.heads else "model.width"
        why = "each head gets an even part of it (rotary positions turn pairs)"
        yield key, f"a width of {sizes.width} cannot be divided by {sizes.heads} heads: {why}"


def _tokenizer_problems(config: Config) -> Problems:
    tokenizer = config.tokenizer
    if config.model.tokenizer:
        for key in _changed(tokenizer):
            yield key, f"model.tokenizer names an existing tokenizer, {config.model.tokenizer}; remove one of the two"
    elif tokenizer.kind == "bpe":
        if tokenizer.split_punctuation:
            yield "tokenizer.split_punctuation", "applies only to tokenizer.kind: word; remove it"
        if tokenizer.vocabulary_size < LEAST_BPE:
            least = f"{tokenizer.vocabulary_size} is too few for bpe, which has 256 bytes; set at least {LEAST_BPE}"
            yield "tokenizer.vocabulary_size", least


def _target_problems(config: Config) -> Problems:
    key, own = config.tuning.section
    targets, known = getattr(own, "targets", None), FAMILIES[str(config.model.family)].matrices
    for name in targets if isinstance(targets, list) else ():
        if name.rpartition(".")[2] not in known:
            yield f"{key}.targets", f"{config.model.family} has no {name}; it has {', '.join(known)}"
