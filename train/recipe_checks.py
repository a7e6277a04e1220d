"""Checks of a configuration before any data or model is read: contradictions between its keys."""

from __future__ import annotations

from train import recipe_checks_family
from train.config import Config, OptimConfig
from train.fingerprint import DEFAULTS, flat
from train.registry import TUNINGS, Problems, own_keys
from zerotune.data.file_options import FileOptions
from zerotune.data.formats import is_learned

NEEDS_HELD_OUT = "needs held-out data: data.validation or data.validation_fraction"


def problems(config: Config) -> Problems:
    """(key, message) of all errors."""
    yield from _source_problems(config)
    yield from _model_problems(config)
    yield from recipe_checks_family.problems(config)
    yield from _data_problems(config)
    yield from _batch_problems(config)
    yield from _optim_problems(config.optim)
    yield from _validation_problems(config)
    yield from _head_problems(config)
    yield from config.spec.problems(config)


def _source_problems(config: Config) -> Problems:
    for name, sources in (("train", config.data.train), ("validation", config.data.validation)):
        for index, source in enumerate(sources):
            key = f"data.{name}[{index}]"
            for option, problem in FileOptions(source.delimiter, source.encoding, source.filter).problems():
                yield f"{key}.{option}", problem
            if not source.path.strip():
                yield f"{key}.path", "is empty; give a file, folder, glob or hub data set"
            known = config.spec.formats
            if not is_learned(source.format, known):
                yield f"{key}.format", f"{config.objective} learns from {', '.join(known)}, not from {source.format}"


def _model_problems(config: Config) -> Problems:
    model, tuning = config.model, config.tuning
    if not config.run.folder.strip():
        yield "run.folder", "is empty; give the folder that the run writes into"
    if tuning.quantization != "none":
        if model.init == "random":
            yield "model.init", "random weights cannot be quantised; set tuning.quantization: none"
        if not tuning.spec.can_quantize:
            able = " or ".join(name for name, spec in TUNINGS.items() if spec.can_quantize)
            needed = f"{tuning.quantization} freezes the weights and needs tuning.kind: {able}, not {tuning.kind}"
            yield "tuning.quantization", needed
        if model.weights != "auto":
            yield "model.weights", "must be auto with tuning.quantization, which determines how weights are stored"
    key, own = tuning.section
    if not getattr(own, "targets", True):
        yield f"{key}.targets", "is empty; give all-linear or a list of module names"
    if not tuning.spec.can_pack and config.batch.layout == "packed":
        yield "batch.layout", f"{tuning.kind} tuning does not support packed rows; use padded or auto"


def _data_problems(config: Config) -> Problems:
    data, duration = config.data, config.duration
    if not data.train:
        yield "data.train", "is empty; give at least one source, for example [{path: my.jsonl, format: qa}]"
    if data.validation and data.validation_fraction:
        twice = "data.validation is set as well; remove one of the two"
        yield "data.validation_fraction", twice
    if duration.max_steps is None and duration.max_tokens is None:
        if data.streaming:
            yield "data.streaming", "streamed data has no known length; set duration.max_steps or duration.max_tokens"
        elif duration.max_epochs is None:
            ends = "set duration.max_epochs, duration.max_steps or duration.max_tokens"
            yield "duration.max_epochs", f"nothing ends the run; {ends}"
    if data.streaming:
        yield from _stream_problems(config)


def _stream_problems(config: Config) -> Problems:
    epochs = config.duration.max_epochs
    unknown = "streamed data has no known"
    if config.data.validation_fraction:
        yield "data.validation_fraction", f"{unknown} length; set data.validation instead"
    if epochs is not None and not epochs.is_integer():
        yield "duration.max_epochs", f"{unknown} length; set a whole number of epochs, not {epochs}"
    if config.checkpoint.every_steps is None:
        yield "checkpoint.every_steps", f"{unknown} end of an epoch; set a number of steps"
    if config.data.validation and config.validation.every_steps is None:
        yield "validation.every_steps", f"{unknown} end of an epoch; set a number of steps"


def _batch_problems(config: Config) -> Problems:
    step, micro, row = (
        config.batch.tokens_per_step, config.batch.tokens_per_micro_batch, config.data.max_length_tokens,
    )  # fmt: skip
    if micro > step:
        yield "batch.tokens_per_micro_batch", f"{micro} exceeds batch.tokens_per_step, {step}; lower it"
    if row > micro:
        larger = f"{row} exceeds batch.tokens_per_micro_batch, {micro}; lower it, or raise the latter"
        yield "data.max_length_tokens", larger


def _optim_problems(optim: OptimConfig) -> Problems:
    for name in optim.spec.unused:
        if getattr(optim, name) != getattr(OptimConfig, name):
            yield f"optim.{name}", f"{optim.name} does not use it; remove it, or set optim.name: adamw"


def _validation_problems(config: Config) -> Problems:
    validation = config.validation
    if config.spec.metric(validation.metric) not in config.spec.metrics:
        known = ", ".join(config.spec.metrics)
        yield "validation.metric", f"{config.objective} has no {validation.metric}; it has {known}"
    if validation.metric == "exact_match" and not validation.exact_match_rows:
        yield "validation.metric", "exact_match needs validation.exact_match_rows; set it above 0"
    if config.data.validation or config.data.validation_fraction:
        return
    if validation.patience:
        yield "validation.patience", f"early stopping {NEEDS_HELD_OUT}"
    if validation.exact_match_rows:
        yield "validation.exact_match_rows", NEEDS_HELD_OUT


def _head_problems(config: Config) -> Problems:
    labels = config.head.labels
    twice = sorted({name for name in labels if labels.count(name) > 1})
    if twice:
        yield "head.labels", f"{', '.join(twice)} is listed twice; remove one"
    values = flat(config)
    for key, objectives in own_keys().items():
        if config.objective not in objectives and key in DEFAULTS and values[key] != DEFAULTS[key]:
            yield key, f"applies only to {', '.join(objectives)} (the objective is {config.objective})"
