"""Loads models and tokenizers, or initialises models; new weights depend only on a seed."""

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
from zerotune.data.chat_template_file import own_template
from zerotune.models.dequantize import load_dequantized, quantization_method, refuse_twice, require_plain_numbers
from zerotune.models.folder import read_config, read_json, refuse_code, resolve, weight_files
from zerotune.models.unused_weights import log_once, names_in_files, patterns, report_unread, unread

LOADING = ("quantization_config", "config", "attn_implementation")  # options that are not values of the config
POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")  # transformers' names of position embeddings


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, random numbers start from `seed`; afterwards the random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def unsharded() -> Iterator[None]:
    """Inside, ZeRO-3 does not shard new models: initialised per shard, their weights would depend on the sharding."""
    reference = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = reference


def load_tokenizer(config: ModelConfig, weights: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of the model, or the one that model.tokenizer names. weights: whether those of a hub model are
    fetched with it.
    """
    key = "model.tokenizer" if config.tokenizer else "model.path"
    revision = None if config.tokenizer else config.revision
    folder = resolve(config.tokenizer or config.path, revision, key, config.trust_remote_code, weights)
    path = folder / "tokenizer_config.json"
    if path.exists():
        code = read_json(path).get("auto_map")  # in older files, a list of the tokenizer's two classes
        code = code.get("AutoTokenizer") if isinstance(code, dict) else code
        refuse_code(path, {"auto_map": code}, config.trust_remote_code)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=config.trust_remote_code, local_files_only=True
        )
    except Exception as error:  # a damaged file can cause any error in the libraries
        raise UserError(f"{key}: {folder} has no tokenizer that can be loaded ({error})") from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:  # transformers' result if a file is missing
        raise UserError(f"{key}: the tokenizer in {folder} has an empty vocabulary; is its tokenizer.json missing?")
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
    """A pretrained model in `dtype`, or (init: random) a new one of its config.json.

    Args:
        kind: A model class of transformers or one of its Auto classes.
        config: The recipe's `model`.
        dtype: Storage of the weights.
        attention: Name of a registered attention function; by default, transformers chooses one.
        options: Further keyword arguments of `from_pretrained`: quantisation, or values of the model's config.
        seed: Of new weights.
        new: Modules that the files need not contain (a classification head); their weights are new.

    Raises:
        UserError: Files are missing, damaged, contain pickles, lack weights, or require code to be run.
    """
    folder = resolve(config.path, config.revision, code=config.trust_remote_code)
    keywords = {**(options or {}), **({"attn_implementation": attention} if attention else {})}
    model_config = read_config(folder, config.trust_remote_code)
    if config.init == "random":
        return _initialised(kind, folder, model_config, config, dtype, keywords, seed)
    if keywords.get("quantization_config") is not None:
        refuse_twice(folder, "tuning.quantization", "another quantisation")
    values = {key: keywords.pop(key) for key in list(keywords) if key not in LOADING}
    if values:  # as arguments, values that the config does not have yet would go to the model's constructor
        for key, value in values.items():
            setattr(model_config, key, value)
        keywords["config"] = model_config
    keywords |= {
        "dtype": dtype,
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": config.trust_remote_code,
        "output_loading_info": True,
    }
    with seeded(seed), _no_load_report():
        model, found, empty = (_dequantized if quantization_method(folder) else _plain)(
            kind, folder, config, keywords.pop("config", model_config), keywords, new
        )
    lacking = sorted(name for name in found["missing_keys"] if not any(f".{part}." in f".{name}" for part in new))
    if lacking:
        raise UserError(
            f"{folder}: {lacking[0]} is not in its safetensors files ({len(lacking)} weights missing) and would be "
            "random; is it the checkpoint of another kind of model?"
        )
    ignored = [name for name in empty if not any(f".{part}." in f".{name}" for part in new)]
    if ignored:  # transformers does not report these
        text = f"not in its files, so transformers initialises them: {patterns(ignored)}"
        log_once(logging.WARNING, folder, text)
    model.newly_initialized = list(dict.fromkeys(name.rpartition(".")[0] for name in found["missing_keys"]))
    loaded: PreTrainedModel = model
    return loaded


def _dequantized(
    kind: Any, folder: Path, config: ModelConfig, model_config: Any, keywords: dict[str, Any], new: Sequence[str]
) -> tuple[Any, dict[str, Any], list[str]]:
    """(model, transformers' loading info, weights that are not in the files), for quantised weights."""
    weight_files(folder)
    dtype = str(keywords["dtype"]).removeprefix("torch.")
    log_once(logging.INFO, folder, f"its weights are quantised ({quantization_method(folder)}); dequantised to {dtype}")
    with unsharded():
        model, found = load_dequantized(kind, folder, model_config, new=new, **keywords)
    report_unread(folder, sorted(found["unexpected_keys"]))
    return model, found, []


def _plain(
    kind: Any, folder: Path, config: ModelConfig, model_config: Any, keywords: dict[str, Any], new: Sequence[str]
) -> tuple[Any, dict[str, Any], list[str]]:
    """The same for weights that are not quantised."""
    names = names_in_files(folder)
    require_plain_numbers(folder)
    lost, empty = unread(_empty(kind, model_config, config), names)
    report_unread(folder, lost)
    try:
        model, found = kind.from_pretrained(folder, config=model_config, **keywords)
    except RuntimeError as error:
        if "size" not in str(error):
            raise
        raise UserError(f"{folder}: a weight does not have the shape of its config.json ({error})") from error
    return model, found, empty


@contextlib.contextmanager
def _no_load_report() -> Iterator[None]:
    """Inside, transformers prints no table of missing and unexpected weights: we report them in one line."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def skeleton(kind: Any, config: ModelConfig) -> PreTrainedModel:
    """The model without weights (on the meta device), to check its properties before it is loaded."""
    folder = resolve(config.path, config.revision, code=config.trust_remote_code)
    if config.init == "pretrained":
        quantization_method(folder)  # refused before the data is read
    return _empty(kind, read_config(folder, config.trust_remote_code), config)


def _empty(kind: Any, model_config: Any, config: ModelConfig) -> PreTrainedModel:
    build = getattr(kind, "from_config", None) or kind._from_config
    code = {"trust_remote_code": config.trust_remote_code} if hasattr(kind, "_model_mapping") else {}
    try:
        with torch.device("meta"), unsharded():
            model: PreTrainedModel = build(copy.deepcopy(model_config), **code)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise UserError(
            f"{config.path}: transformers has no {kind.__name__} for {model_config.model_type}; choose another model, "
            "or another objective"
        ) from error
    return model


def learned_positions(model: PreTrainedModel) -> int | None:
    """Number of positions with embeddings (BERT, GPT-2); None if the model computes positions (rotary)."""
    tables = [m for name, m in model.named_modules() if name.rpartition(".")[2] in POSITION_TABLES]
    rows = [(int(m.weight.shape[0]), getattr(m, "offset", None), m) for m in tables if hasattr(m, "weight")]
    if not rows:
        return None
    count, offset, table = min(rows, key=lambda row: row[0])
    padding = getattr(table, "padding_idx", None)  # RoBERTa counts from padding_idx + 1, OPT from a fixed offset
    return count - int(offset if offset is not None else 0 if padding is None else padding + 1)


def unquantized(options: Mapping[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    """Options of `load_model` that exclude `parts`, new modules that are trained, from quantisation."""
    if parts and "quantization_config" in options:
        options["quantization_config"].llm_int8_skip_modules = list(parts)  # applies to 4 bit too
    return dict(options)


def head_parts(model: PreTrainedModel) -> list[str]:
    """Names of the modules with weights outside the model's body, such as a classifier's head."""
    parts = {name: part for name, part in model.named_children() if name != model.base_model_prefix}
    return [name for name, part in parts.items() if next(part.parameters(), None) is not None]


def _initialised(
    kind: Any,
    folder: Path,
    model_config: Any,
    config: ModelConfig,
    dtype: torch.dtype,
    options: dict[str, Any],
    seed: int,
) -> PreTrainedModel:
    if "quantization_config" in options:
        raise UserError("tuning.quantization: model.init is random, so there are no pretrained weights to quantise")
    attention = {key: options.pop(key) for key in ("attn_implementation",) if key in options}
    for key, value in options.items():
        setattr(model_config, key, value)
    if config.family:
        model_config.name_or_path = ""  # the run's own folder, which may move
    code = {"trust_remote_code": config.trust_remote_code} if hasattr(kind, "_model_mapping") else {}
    build = getattr(kind, "from_config", None) or kind._from_config
    with seeded(seed), unsharded():
        model: PreTrainedModel = build(model_config, dtype=dtype, **attention, **code)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def fit_vocabulary(model: PreTrainedModel, tokenizer: Any, seed: int) -> bool:
    """Give the embeddings a row for every token of the tokenizer. Returns whether rows were added.

    New rows are drawn around the mean of the old ones, from `seed`. `model.resized_from_tokens` keeps the old number,
    so that LoRA trains and saves the embeddings: frozen new rows would stay random, and be lost in the merge.
    """
    embedding = model.get_input_embeddings()
    rows = int(getattr(embedding.weight, "ds_shape", embedding.weight.shape)[0])
    if len(tokenizer) <= rows:
        return False
    with seeded(seed):
        model.resize_token_embeddings(len(tokenizer))
    model.resized_from_tokens = rows
    return True
