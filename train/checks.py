"""What can be wrong with a configuration before any data or model is read: ranges and contradictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from train.config import LEARNS_FROM, Config, OptimConfig
from train.config_ppo import PpoConfig
from train.fingerprint import flat
from zerotune.data.file_options import FileOptions

# Intervals as mathematicians write them: [ and ] include the end, ( and ) leave it out. None is never checked.
RANGES = {
    "run.seed": "[0, 4294967295]",
    "run.stop_after_minutes": "(0, inf)",
    "run.hang_seconds": "(0, inf)",
    "run.max_skipped_steps": "[0, inf)",
    "data.validation_fraction": "[0, 1)",
    "data.max_length_tokens": "[2, inf)",
    "data.streaming_window_rows": "[1, inf)",
    "data.workers": "[0, inf)",
    "batch.tokens_per_step": "[1, inf)",
    "batch.tokens_per_micro_batch": "[1, inf)",
    "tuning.lora.rank": "[1, inf)",
    "tuning.lora.alpha": "(0, inf)",
    "tuning.lora.dropout": "[0, 1)",
    "head.dropout": "[0, 1)",
    "tuning.prompt.virtual_tokens": "[1, inf)",
    "ppo.prompt_tokens": "[1, inf)",
    "ppo.response_tokens": "[1, inf)",
    "ppo.rollout_prompts": "[1, inf)",
    "ppo.samples_per_prompt": "[1, inf)",
    "ppo.epochs": "[1, inf)",
    "ppo.minibatches": "[1, inf)",
    "ppo.temperature": "(0, inf)",
    "ppo.top_k": "[0, inf)",
    "ppo.top_p": "(0, 1]",
    "ppo.gamma": "[0, 1]",
    "ppo.gae_lambda": "[0, 1]",
    "ppo.clip": "(0, inf)",
    "ppo.value_clip": "[0, inf)",
    "ppo.value_weight": "[0, inf)",
    "ppo.entropy_weight": "[0, inf)",
    "ppo.kl_weight": "[0, inf)",
    "ppo.kl_target": "(0, inf)",
    "ppo.kl_horizon": "[1, inf)",
    "ppo.supervised_weight": "[0, inf)",
    "ppo.supervised_every": "[0, inf)",
    "ppo.supervised_steps": "[0, inf)",
    "optim.learning_rate": "[0, inf)",
    "optim.weight_decay": "[0, inf)",
    "optim.beta1": "[0, 1)",
    "optim.beta2": "[0, 1)",
    "optim.epsilon": "(0, inf)",
    "optim.clip_norm": "[0, inf)",
    "optim.spike_factor": "(1, inf)",
    "optim.warmup_steps": "[0, inf)",
    "optim.warmup_fraction": "[0, 1]",
    "optim.final_fraction": "[0, 1]",
    "duration.max_epochs": "(0, inf)",
    "duration.max_steps": "[1, inf)",
    "duration.max_tokens": "[1, inf)",
    "validation.every_steps": "[1, inf)",
    "validation.patience": "[0, inf)",
    "validation.max_rows": "[0, inf)",
    "validation.samples": "[0, inf)",
    "validation.exact_match_rows": "[0, inf)",
    "validation.max_new_tokens": "[1, inf)",
    "checkpoint.every_steps": "[1, inf)",
    "checkpoint.keep_last": "[1, inf)",
    "watch.every_steps": "[1, inf)",
    "watch.peak_tflops": "(0, inf)",
}
CLASSIFIERS = ("token_classification", "sequence_classification")
READ_BY = {"path": "model", "label": "model", "metric": "task"}  # of a part of PPO's reward
SOURCE_RANGES = {"weight": "(0, inf)", "fraction": "(0, 1]"}


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """(key, message) for everything wrong; a key names the value to blame first, so that its place can be shown."""
    values = flat(config)
    for key, interval in RANGES.items():
        if not _inside(values[key], interval):
            yield key, f"{key}: must lie in {interval}, not {values[key]}"
    for name in ("data.train", "data.validation"):
        for index, source in enumerate(values[name]):
            yield from _source_problems(f"{name}[{index}]", source)
    yield from _model_problems(config)
    yield from _data_problems(config)
    yield from _batch_problems(config)
    yield from _optim_problems(config.optim)
    yield from _validation_problems(config)
    yield from _head_problems(config)
    if config.objective == "ppo":
        yield from _ppo_problems(config)


def _ppo_problems(config: Config) -> Iterator[tuple[str, str]]:
    ppo = config.ppo
    if not ppo.reward:
        yield "ppo.reward", "ppo.reward: names no part; for example [{kind: model, path: runs/imdb-sentiment/merged}]"
    names = [part.name or part.kind for part in ppo.reward]
    for name in {name for name in names if names.count(name) > 1}:
        yield "ppo.reward", f"ppo.reward: two parts are called {name}; give each a name"
    for name in {"deviation", "min", "max"} & set(names):
        yield "ppo.reward", f"ppo.reward: a part cannot be called {name}, since rollout/reward_{name} is the whole's"
    for index, part in enumerate(ppo.reward):
        if part.kind == "model" and not part.path:
            yield "ppo.reward", f"ppo.reward[{index}].path: names no classifier"
        for name, kind in READ_BY.items():
            if getattr(part, name) and part.kind != kind:
                yield "ppo.reward", f"ppo.reward[{index}].{name}: of kind {kind} alone, not of {part.kind}"
    if any(part.kind == "task" for part in ppo.reward) and not ppo.task:
        yield "ppo.reward", "ppo.reward: kind task scores answers to ppo.task, which names none; for example gsm8k_cot"
    if ppo.advantage != "gae" and ppo.samples_per_prompt < 2:
        yield "ppo.samples_per_prompt", f"ppo.samples_per_prompt: {ppo.advantage} compares answers; give at least 2"
    if ppo.advantage != "gae" and ppo.value_model:
        yield "ppo.value_model", f"ppo.value_model: {ppo.advantage} learns no values; leave it out, or take gae"
    yield from _rollout_problems(ppo)
    if bool(ppo.supervised_every) != bool(ppo.supervised_steps):
        yield "ppo.supervised_every", "ppo.supervised_every: needs ppo.supervised_steps, and the other way round"
    if config.optim.spike_factor is not None:
        yield "optim.spike_factor", "optim.spike_factor: PPO's loss rises and falls around 0; leave it out"
    if config.tuning.lora.dropout and config.tuning.kind == "lora":
        yield "tuning.lora.dropout", "tuning.lora.dropout: PPO compares probabilities before and after; set it to 0"
    if config.tuning.lora.bias != "none" and config.tuning.kind == "lora":
        yield (
            "tuning.lora.bias",
            "tuning.lora.bias: PPO's reference is the model with its adapter switched off, which leaves trained biases "
            "on; set it to none",
        )
    weighted = [index for index, source in enumerate(config.data.train) if source.weight != 1]
    if weighted and not ppo.supervised_weight and not ppo.supervised_every:
        yield (
            f"data.train[{weighted[0]}].weight",
            f"data.train[{weighted[0]}].weight: every prompt of PPO comes once an epoch, and weights count in "
            "supervised steps alone; leave it out, or take a fraction",
        )
    if config.data.streaming:
        yield "data.streaming", "data.streaming: PPO draws its prompts from data at rest; set it to false"


def _rollout_problems(ppo: PpoConfig) -> Iterator[tuple[str, str]]:
    answers = ppo.rollout_prompts * ppo.samples_per_prompt
    of_a_rollout = f"{answers:,} answers of a rollout (ppo.rollout_prompts x ppo.samples_per_prompt)"
    if ppo.minibatches > answers > 0:  # of none its own range tells
        yield (
            "ppo.minibatches",
            f"ppo.minibatches: {ppo.minibatches:,} steps cannot share the {of_a_rollout}; give at most {answers:,}",
        )
    if ppo.kl_target is not None and not ppo.kl_weight:
        yield "ppo.kl_target", "ppo.kl_target: multiplies ppo.kl_weight, and 0 stays 0; give a weight to begin with"
    if ppo.kl_target is not None and ppo.kl_horizon < answers:
        yield (
            "ppo.kl_horizon",
            f"ppo.kl_horizon: {ppo.kl_horizon:,} is less than the {of_a_rollout}; give at least {answers:,}",
        )


def _head_problems(config: Config) -> Iterator[tuple[str, str]]:
    head, objective = config.head, config.objective
    twice = sorted({name for name in head.labels if head.labels.count(name) > 1})
    if twice:
        yield "head.labels", f"head.labels: {', '.join(twice)} stands there twice"
    used = {
        "head.labels": (head.labels, (*CLASSIFIERS, "causal_lm")),
        "head.class_weights": (head.class_weights != "none", CLASSIFIERS),
        "head.sub_words": (head.sub_words != "first", ("token_classification",)),
        "head.dropout": (head.dropout is not None, (*CLASSIFIERS, "regression", "reward_model")),
    }
    for key, (is_set, objectives) in used.items():
        if is_set and objective not in objectives:
            yield key, f"{key}: means nothing to {objective}, but to {', '.join(objectives)}"
    for name in ("train", "validation"):
        for index, source in enumerate(getattr(config.data, name)):
            if source.format not in LEARNS_FROM[objective]:
                key = f"data.{name}[{index}].format"
                yield (
                    key,
                    f"{key}: {objective} learns from {', '.join(LEARNS_FROM[objective])}, not from {source.format}",
                )


def _inside(value: float | None, interval: str) -> bool:
    if value is None:
        return True
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def _source_problems(name: str, source: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, interval in SOURCE_RANGES.items():
        if not _inside(source[key], interval):
            yield f"{name}.{key}", f"{name}.{key}: must lie in {interval}, not {source[key]}"
    options = FileOptions(source["delimiter"], source["encoding"], source["filter"])
    for option, problem in options.problems():
        yield f"{name}.{option}", f"{name}.{option}: {problem}"
    if not source["path"].strip():
        yield f"{name}.path", f"{name}.path is empty: give a file, folder, glob or hub data set"


def _model_problems(config: Config) -> Iterator[tuple[str, str]]:
    model, tuning = config.model, config.tuning
    if not config.run.folder.strip():
        yield "run.folder", "run.folder is empty: give the folder that the run writes into"
    if not model.path.strip():
        yield "model.path", "model.path is missing: give a folder in Hugging Face layout or a hub name"
    if model.init == "random" and tuning.quantization != "none":
        yield "model.init", "model.init: random weights cannot be quantised; set tuning.quantization: none"
    if tuning.quantization != "none" and tuning.kind != "lora":
        yield (
            "tuning.quantization",
            (
                f"tuning.quantization: {tuning.quantization} freezes the weights and needs tuning.kind: lora, "
                f"not {tuning.kind}"
            ),
        )
    if tuning.quantization != "none" and model.weights != "auto":
        yield "model.weights", "model.weights: leave it at auto where tuning.quantization stores the weights"
    if tuning.kind == "lora" and not tuning.lora.targets:
        yield "tuning.lora.targets", "tuning.lora.targets is empty: give all-linear or a list of module names"
    if tuning.kind == "prompt" and config.batch.layout == "packed":
        yield (
            "batch.layout",
            (
                "batch.layout: prompt tuning puts its vectors before every row, so rows cannot share a sequence; "
                "use padded or auto"
            ),
        )


def _data_problems(config: Config) -> Iterator[tuple[str, str]]:
    data, duration = config.data, config.duration
    if not data.train:
        yield "data.train", "data.train is empty: give at least one source, for example [{path: my.jsonl, format: qa}]"
    if data.validation and data.validation_fraction:
        yield (
            "data.validation_fraction",
            (
                "data.validation_fraction: validation sources are given too; keep one of data.validation and "
                "data.validation_fraction"
            ),
        )
    if duration.max_steps is None and duration.max_tokens is None:
        if data.streaming:
            yield (
                "data.streaming",
                "data.streaming: a stream has no known length; set duration.max_steps or duration.max_tokens",
            )
        elif duration.max_epochs is None:
            yield (
                "duration.max_epochs",
                "duration: nothing ends the run; set duration.max_epochs, duration.max_steps or duration.max_tokens",
            )
    if data.streaming:
        yield from _stream_problems(config)


def _stream_problems(config: Config) -> Iterator[tuple[str, str]]:
    epochs = config.duration.max_epochs
    if config.data.validation_fraction:
        yield (
            "data.validation_fraction",
            "data.validation_fraction: a stream has no known length to take a share of; give data.validation instead",
        )
    if epochs is not None and not float(epochs).is_integer():
        yield (
            "duration.max_epochs",
            f"duration.max_epochs: a stream has no known length to take a part of; give whole passes, not {epochs}",
        )
    unknown = "a stream has no known epochs to end; say after how many steps"
    if config.checkpoint.every_steps is None:
        yield "checkpoint.every_steps", f"checkpoint.every_steps: {unknown}"
    if config.data.validation and config.validation.every_steps is None:
        yield "validation.every_steps", f"validation.every_steps: {unknown}"


def _batch_problems(config: Config) -> Iterator[tuple[str, str]]:
    batch = config.batch
    if batch.tokens_per_micro_batch > batch.tokens_per_step:
        yield (
            "batch.tokens_per_micro_batch",
            (
                f"batch.tokens_per_micro_batch: {batch.tokens_per_micro_batch} exceeds batch.tokens_per_step, "
                f"{batch.tokens_per_step}; a step is made of whole micro-batches"
            ),
        )
    if config.data.max_length_tokens > batch.tokens_per_micro_batch:
        yield (
            "data.max_length_tokens",
            (
                f"data.max_length_tokens: a row of {config.data.max_length_tokens} tokens does not fit into "
                f"batch.tokens_per_micro_batch, {batch.tokens_per_micro_batch}"
            ),
        )


def _optim_problems(optim: OptimConfig) -> Iterator[tuple[str, str]]:
    if optim.name == "adafactor":
        for name in ("beta1", "beta2", "epsilon"):
            if getattr(optim, name) != getattr(OptimConfig, name):
                yield f"optim.{name}", f"optim.{name}: adafactor does not use it; remove it, or set optim.name: adamw"


def _validation_problems(config: Config) -> Iterator[tuple[str, str]]:
    validation, data = config.validation, config.data
    held_out = bool(data.validation) or data.validation_fraction > 0
    if validation.metric == "exact_match" and not validation.exact_match_rows:
        yield (
            "validation.metric",
            ("validation.metric: exact_match is only measured with validation.exact_match_rows above 0"),
        )
    if validation.patience and not held_out:
        yield (
            "validation.patience",
            ("validation.patience: early stopping needs held-out data: data.validation or data.validation_fraction"),
        )
    if validation.exact_match_rows and not held_out:
        yield (
            "validation.exact_match_rows",
            ("validation.exact_match_rows: needs held-out data: data.validation or data.validation_fraction"),
        )
