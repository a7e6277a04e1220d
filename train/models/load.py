"""Models and tokenizers, loaded or made afresh; what they start from is a function of a seed."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.utils import logging as transformers_logging

from train.config import ModelConfig
from zerotune.common.errors import UserError
from zerotune.data.own_template import own_template
from zerotune.models.dequantize import load_dequantized, quantization_method, refuse_twice, require_plain_numbers
from zerotune.models.folder import read_config, read_json, refuse_code, resolve, weight_files
from zerotune.models.unread import log_once, names_in_files, patterns, report_unread, unread

LOADING = ("quantization_config", "config", "attn_implementation")  # what of the options is no value of the config
POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")  # what transformers calls learned positions


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, new weights are a function of `seed`; outside, the random stream goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def unsharded() -> Iterator[None]:
    """Inside, ZeRO-3 shards no model while it is made: drawn shard by shard, new weights would depend on the shards."""
    reference = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = reference


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, or the one that model.tokenizer names."""
    key = "model.tokenizer" if config.tokenizer else "model.path"
    revision = None if config.tokenizer else config.revision
    folder = resolve(config.tokenizer or config.path, revision, key, config.trust_remote_code)
    path = folder / "tokenizer_config.json"
    if path.exists():
        code = read_json(path).get("auto_map")  # older files: the tokenizer's two classes as a list
        code = code.get("AutoTokenizer") if isinstance(code, dict) else code
        refuse_code(path, {"auto_map": code}, config.trust_remote_code)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # whatever a broken file makes the libraries stumble over
        raise UserError(f"{key}: {folder} holds no tokenizer that can be loaded ({error})") from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # what transformers makes where a file is missing
        raise UserError(f"{key}: the tokenizer in {folder} knows no words; is its tokenizer.json missing?")
    tokenizer.chat_template = own_template(tokenizer, folder)
    return tokenizer


def load_model(
    kind: Any,
    config: ModelConfig,
    dtype: torch.dtype,
    attention: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    new: Sequence[str] = (),
) -> PreTrainedModel:
    """A model in `dtype`, pretrained or (init: random) fresh from its config.json.

    Args:
        kind: A model class of transformers or one of its Auto classes.
        config: Which model.
        dtype: Storage of the weights.
        attention: Name of a registered attention function; transformers chooses one otherwise.
        options: Further keyword arguments of `from_pretrained`: quantisation, or values of the model's config.
        seed: New weights are a function of it.
        new: Modules that the file need not hold (a classification head): they start from the seed.

    Raises:
        UserError: Where files are missing, damaged, hold pickles, lack weights, or ask for code to be run.
    """
    folder = resolve(config.path, config.revision, code=config.trust_remote_code)
    keywords = {**(options or {}), **({"attn_implementation": attention} if attention else {})}
    described = read_config(folder, config.trust_remote_code)
    if config.init == "random":
        return _fresh(kind, folder, described, config, dtype, keywords, seed)
    if keywords.get("quantization_config") is not None:
        refuse_twice(folder, "tuning.quantization", "another quantisation")
    values = {key: keywords.pop(key) for key in list(keywords) if key not in LOADING}
    if values:  # given as arguments, those that the config does not know yet would go to the model's constructor
        for key, value in values.items():
            setattr(described, key, value)
        keywords["config"] = described
    keywords |= {
        "dtype": dtype,
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": config.trust_remote_code,
        "output_loading_info": True,
    }
    with seeded(seed), _own_report():
        model, found, empty = (_dequantized if quantization_method(folder) else _plain)(
            kind, folder, config, keywords.pop("config", described), keywords, new
        )
    lacking = sorted(name for name in found["missing_keys"] if not any(f".{part}." in f".{name}" for part in new))
    if lacking:
        raise UserError(
            f"{folder}: {lacking[0]} is not in its safetensors files ({len(lacking)} weights missing) and would start "
            "from random values; is it the checkpoint of another kind of model?"
        )
    passed_over = [name for name in empty if not any(f".{part}." in f".{name}" for part in new)]
    if passed_over:  # transformers calls these unimportant
        text = f"not in its files, so new as transformers makes them: {patterns(passed_over)}"
        log_once(logging.WARNING, folder, text)
    model.made_anew = list(dict.fromkeys(name.rpartition(".")[0] for name in found["missing_keys"]))
    loaded: PreTrainedModel = model
    return loaded


def _dequantized(
    kind: Any, folder: Path, config: ModelConfig, described: Any, keywords: dict[str, Any], new: Sequence[str]
) -> tuple[Any, dict[str, Any], list[str]]:
    """(model, what transformers tells of its loading, weights for which the files have none)."""
    weight_files(folder)
    dtype = str(keywords["dtype"]).removeprefix("torch.")
    log_once(logging.INFO, folder, f"its weights are quantised ({quantization_method(folder)}); dequantised to {dtype}")
    with unsharded():
        model, found = load_dequantized(kind, folder, described, new=new, **keywords)
    report_unread(folder, sorted(found["unexpected_keys"]))
    return model, found, []


def _plain(
    kind: Any, folder: Path, config: ModelConfig, described: Any, keywords: dict[str, Any], new: Sequence[str]
) -> tuple[Any, dict[str, Any], list[str]]:
    """The same, from weights that are what they look like."""
    names = names_in_files(folder)
    require_plain_numbers(folder)
    lost, empty = unread(_empty(kind, described, config), names)
    report_unread(folder, lost)
    try:
        model, found = kind.from_pretrained(folder, config=described, **keywords)
    except RuntimeError as error:
        if "size" not in str(error):
            raise
        raise UserError(f"{folder}: a weight has another shape than its config.json asks for ({error})") from error
    return model, found, empty


@contextlib.contextmanager
def _own_report() -> Iterator[None]:
    """Inside, transformers prints no table of the weights that are lacking or left over: we tell in one line."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def skeleton(kind: Any, config: ModelConfig) -> PreTrainedModel:
    """The model without weights (on the meta device), to ask what it can do before it is loaded."""
    folder = resolve(config.path, config.revision, code=config.trust_remote_code)
    if config.init == "pretrained":
        quantization_method(folder)  # refused before the data is read
    return _empty(kind, read_config(folder, config.trust_remote_code), config)


def _empty(kind: Any, described: Any, config: ModelConfig) -> PreTrainedModel:
    """A model on the meta device."""
    build = getattr(kind, "from_config", None) or kind._from_config
    code = {"trust_remote_code": config.trust_remote_code} if hasattr(kind, "_model_mapping") else {}
    with torch.device("meta"), unsharded():
        model: PreTrainedModel = build(copy.deepcopy(described), **code)
    return model


def learned_positions(model: PreTrainedModel) -> int | None:
    """How many positions a model has embeddings for (BERT, GPT-2); None where it computes them as it needs them."""
    tables = [m for name, m in model.named_modules() if name.rpartition(".")[2] in POSITION_TABLES]
    rows = [(int(m.weight.shape[0]), getattr(m, "offset", None), m) for m in tables if hasattr(m, "weight")]
    if not rows:
        return None
    count, offset, table = min(rows, key=lambda row: row[0])
    padding = getattr(table, "padding_idx", None)  # RoBERTa counts from behind it, OPT from a fixed offset
    return count - int(offset if offset is not None else 0 if padding is None else padding + 1)


def unquantized(options: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """Options of `load_model` by which new parts, which are trained themselves, are not quantised."""
    if parts and "quantization_config" in options:
        options["quantization_config"].llm_int8_skip_modules = list(parts)  # of 4 bit too, whatever its name says
    return dict(options)


def head_parts(model: PreTrainedModel) -> list[str]:
    """The parts with weights that a model has beside its body: of a classifier, its head."""
    parts = {name: part for name, part in model.named_children() if name != model.base_model_prefix}
    return [name for name, part in parts.items() if next(part.parameters(), None) is not None]


def _fresh(
    kind: Any, folder: Path, described: Any, config: ModelConfig, dtype: torch.dtype, options: dict[str, Any], seed: int
) -> PreTrainedModel:
    if "quantization_config" in options:
        raise UserError("tuning.quantization: model.init is random, so there are no pretrained weights to quantise")
    attention = {key: options.pop(key) for key in ("attn_implementation",) if key in options}
    for key, value in options.items():
        setattr(described, key, value)
    code = {"trust_remote_code": config.trust_remote_code} if hasattr(kind, "_model_mapping") else {}
    build = getattr(kind, "from_config", None) or kind._from_config
    with seeded(seed), unsharded():
        model: PreTrainedModel = build(described, dtype=dtype, **attention, **code)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def fit_vocabulary(model: PreTrainedModel, tokenizer: Any, seed: int) -> bool:
    """Give the embeddings a row for every token of the tokenizer; whether any had to be added.

    New rows are drawn around the mean of the old ones, as a function of `seed`. They are remembered on the model, so
    that LoRA trains and saves the embeddings: frozen new rows would stay noise, and be lost at the merge.
    """
    embedding = model.get_input_embeddings()
    rows = int(getattr(embedding.weight, "ds_shape", embedding.weight.shape)[0])
    if len(tokenizer) <= rows:
        return False
    with seeded(seed):
        model.resize_token_embeddings(len(tokenizer))
    model.resized_from_tokens = rows
    return True
