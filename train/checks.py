"""What can be wrong with a configuration before any data or model is read: contradictions between its keys."""

from __future__ import annotations

from collections.abc import Iterator

from train.config import LEARNS_FROM, Config, OptimConfig
from train.config_ppo import PpoConfig
from zerotune.data.file_options import FileOptions

CLASSIFIERS = ("token_classification", "sequence_classification")
READ_BY = {"path": "model", "label": "model", "metric": "task"}  # of a part of PPO's reward
NEEDS_HELD_OUT = "needs held-out data: data.validation or data.validation_fraction"

Problems = Iterator[tuple[str, str]]


def problems(config: Config) -> Problems:
    """(key, message) for everything wrong; the key is that of the value to blame first."""
    yield from _source_problems(config)
    yield from _model_problems(config)
    yield from _data_problems(config)
    yield from _batch_problems(config)
    yield from _optim_problems(config.optim)
    yield from _validation_problems(config)
    yield from _head_problems(config)
    if config.objective == "ppo":
        yield from _reward_problems(config.ppo)
        yield from _rollout_problems(config.ppo)
        yield from _ppo_problems(config)


def _source_problems(config: Config) -> Problems:
    for name, sources in (("train", config.data.train), ("validation", config.data.validation)):
        for index, source in enumerate(sources):
            key = f"data.{name}[{index}]"
            for option, problem in FileOptions(source.delimiter, source.encoding, source.filter).problems():
                yield f"{key}.{option}", problem
            if not source.path.strip():
                yield f"{key}.path", "is empty; give a file, folder, glob or hub data set"
            known = LEARNS_FROM[config.objective]
            if source.format not in known:
                yield f"{key}.format", f"{config.objective} learns from {', '.join(known)}, not from {source.format}"


def _model_problems(config: Config) -> Problems:
    model, tuning = config.model, config.tuning
    if not config.run.folder.strip():
        yield "run.folder", "is empty; give the folder that the run writes into"
    if not model.path.strip():
        yield "model.path", "is missing; give a folder in Hugging Face layout or a hub name"
    if tuning.quantization != "none":
        if model.init == "random":
            yield "model.init", "random weights cannot be quantised; set tuning.quantization: none"
        if tuning.kind != "lora":
            needed = f"{tuning.quantization} freezes the weights and needs tuning.kind: lora, not {tuning.kind}"
            yield "tuning.quantization", needed
        if model.weights != "auto":
            yield "model.weights", "leave it at auto where tuning.quantization stores the weights"
    if tuning.kind == "lora" and not tuning.lora.targets:
        yield "tuning.lora.targets", "is empty; give all-linear or a list of module names"
    if tuning.kind == "prompt" and config.batch.layout == "packed":
        alone = "prompt tuning puts its vectors before every row, so rows cannot share a sequence; use padded or auto"
        yield "batch.layout", alone


def _data_problems(config: Config) -> Problems:
    data, duration = config.data, config.duration
    if not data.train:
        yield "data.train", "is empty; give at least one source, for example [{path: my.jsonl, format: qa}]"
    if data.validation and data.validation_fraction:
        twice = "validation sources are given too; keep one of data.validation and data.validation_fraction"
        yield "data.validation_fraction", twice
    if duration.max_steps is None and duration.max_tokens is None:
        if data.streaming:
            yield "data.streaming", "a stream has no known length; set duration.max_steps or duration.max_tokens"
        elif duration.max_epochs is None:
            ends = "set duration.max_epochs, duration.max_steps or duration.max_tokens"
            yield "duration.max_epochs", f"nothing ends the run; {ends}"
    if data.streaming:
        yield from _stream_problems(config)


def _stream_problems(config: Config) -> Problems:
    epochs = config.duration.max_epochs
    unknown = "a stream has no known"
    if config.data.validation_fraction:
        yield "data.validation_fraction", f"{unknown} length to take a share of; give data.validation instead"
    if epochs is not None and not epochs.is_integer():
        yield "duration.max_epochs", f"{unknown} length to take a part of; give whole passes, not {epochs}"
    if config.checkpoint.every_steps is None:
        yield "checkpoint.every_steps", f"{unknown} epochs to end; say after how many steps"
    if config.data.validation and config.validation.every_steps is None:
        yield "validation.every_steps", f"{unknown} epochs to end; say after how many steps"


def _batch_problems(config: Config) -> Problems:
    step, micro, row = (
        config.batch.tokens_per_step, config.batch.tokens_per_micro_batch, config.data.max_length_tokens,
    )  # fmt: skip
    if micro > step:
        made = f"{micro} exceeds batch.tokens_per_step, {step}; a step is made of whole micro-batches"
        yield "batch.tokens_per_micro_batch", made
    if row > micro:
        yield "data.max_length_tokens", f"a row of {row} tokens does not fit into batch.tokens_per_micro_batch, {micro}"


def _optim_problems(optim: OptimConfig) -> Problems:
    for name in ("beta1", "beta2", "epsilon") if optim.name == "adafactor" else ():
        if getattr(optim, name) != getattr(OptimConfig, name):
            yield f"optim.{name}", "adafactor does not use it; remove it, or set optim.name: adamw"


def _validation_problems(config: Config) -> Problems:
    validation = config.validation
    if validation.metric == "exact_match" and not validation.exact_match_rows:
        yield "validation.metric", "exact_match is only measured with validation.exact_match_rows above 0"
    if config.data.validation or config.data.validation_fraction:
        return
    if validation.patience:
        yield "validation.patience", f"early stopping {NEEDS_HELD_OUT}"
    if validation.exact_match_rows:
        yield "validation.exact_match_rows", NEEDS_HELD_OUT


def _head_problems(config: Config) -> Problems:
    head = config.head
    twice = sorted({name for name in head.labels if head.labels.count(name) > 1})
    if twice:
        yield "head.labels", f"{', '.join(twice)} stands there twice"
    used = {
        "head.labels": (head.labels, (*CLASSIFIERS, "causal_lm")),
        "head.class_weights": (head.class_weights != "none", CLASSIFIERS),
        "head.sub_words": (head.sub_words != "first", ("token_classification",)),
        "head.dropout": (head.dropout is not None, (*CLASSIFIERS, "regression", "reward_model")),
    }
    for key, (is_set, objectives) in used.items():
        if is_set and config.objective not in objectives:
            yield key, f"means nothing to {config.objective}, but to {', '.join(objectives)}"


def _reward_problems(ppo: PpoConfig) -> Problems:
    if not ppo.reward:
        yield "ppo.reward", "names no part; for example [{kind: model, path: runs/imdb-sentiment/merged}]"
    names = [part.name or part.kind for part in ppo.reward]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "ppo.reward", f"two parts are called {name}; give each a name"
    for index, part in enumerate(ppo.reward):
        key = f"ppo.reward[{index}]"
        if names[index] in ("deviation", "min", "max"):
            yield f"{key}.name", f"cannot be {part.name}, since rollout/reward_{part.name} is that of all parts"
        if part.kind == "model" and not part.path:
            yield f"{key}.path", "names no classifier"
        for name, kind in READ_BY.items():
            if getattr(part, name) and part.kind != kind:
                yield f"{key}.{name}", f"of kind {kind} alone, not of {part.kind}"
    if any(part.kind == "task" for part in ppo.reward) and not ppo.task:
        yield "ppo.reward", "kind task scores answers to ppo.task, which names none; for example gsm8k_cot"


def _rollout_problems(ppo: PpoConfig) -> Problems:
    answers = ppo.rollout_prompts * ppo.samples_per_prompt
    of_a_rollout = f"{answers:,} answers of a rollout (ppo.rollout_prompts x ppo.samples_per_prompt)"
    if ppo.minibatches > answers:
        most = f"{ppo.minibatches:,} steps cannot share the {of_a_rollout}; give at most {answers:,}"
        yield "ppo.minibatches", most
    if ppo.kl_target is not None and not ppo.kl_weight:
        yield "ppo.kl_target", "multiplies ppo.kl_weight, and 0 stays 0; give a weight to begin with"
    if ppo.kl_target is not None and ppo.kl_horizon < answers:
        yield "ppo.kl_horizon", f"{ppo.kl_horizon:,} is less than the {of_a_rollout}; give at least {answers:,}"


def _ppo_problems(config: Config) -> Problems:
    ppo, lora = config.ppo, config.tuning.lora
    if ppo.advantage != "gae" and ppo.samples_per_prompt < 2:
        yield "ppo.samples_per_prompt", f"{ppo.advantage} compares answers; give at least 2"
    if ppo.advantage != "gae" and ppo.value_model:
        yield "ppo.value_model", f"{ppo.advantage} learns no values; leave it out, or take gae"
    if bool(ppo.supervised_every) != bool(ppo.supervised_steps):
        yield "ppo.supervised_every", "needs ppo.supervised_steps, and the other way round"
    if config.optim.spike_factor is not None:
        yield "optim.spike_factor", "PPO's loss rises and falls around 0; leave it out"
    if lora.dropout and config.tuning.kind == "lora":
        yield "tuning.lora.dropout", "PPO compares probabilities before and after; set it to 0"
    if lora.bias != "none" and config.tuning.kind == "lora":
        off = "PPO's reference is the model with its adapter switched off, which leaves trained biases on"
        yield "tuning.lora.bias", f"{off}; set it to none"
    weighted = [index for index, source in enumerate(config.data.train) if source.weight != 1]
    if weighted and not ppo.supervised_weight and not ppo.supervised_every:
        once = "every prompt of PPO comes once an epoch, and weights count in supervised steps alone"
        yield f"data.train[{weighted[0]}].weight", f"{once}; leave it out, or take a fraction"
    if config.data.streaming:
        yield "data.streaming", "PPO draws its prompts from data at rest; set it to false"
