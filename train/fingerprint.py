"""What of a recipe training's numbers depend on: its keys, and one digest of them all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from train.config import Config, SourceConfig, TuningConfig
from train.config_ppo import RewardConfig
from train.registry import own_keys

# Keys that may change between a run and its resumption: they alter no number that training computes.
FREE_KEYS = (
    "run.folder",
    "run.resume",
    "run.extend",
    "run.stop_after_minutes",
    "run.hang_seconds",
    "batch.tokens_per_micro_batch",
    "checkpoint",
    "watch",
    "merge",
    "validation.samples",
    "data.cache_folder",
    "data.workers",
)
# Where content is found, and not what it is: digests tell that (train/checkpoint/manager.py), so it may move.
PLACES = ("model.path", "model.revision", "model.tokenizer", "ppo.value_model")
PLACES_INSIDE = ("path", "revision", "split")  # of a source, of a part of PPO's reward
PLACES_IF_FILES = {"data.chat_template": ".jinja", "ppo.task": ".yaml"}  # else a name, which says what it is
ENTRIES: Mapping[str, Any] = {
    "data.train": SourceConfig, "data.validation": SourceConfig, "ppo.reward": RewardConfig,
}  # fmt: skip
# What `run.extend` may change: the end, and the learning rate on the way there.
EXTENDABLE = (
    "duration.max_epochs",
    "duration.max_steps",
    "duration.max_tokens",
    "validation.patience",
    "optim.learning_rate",
    "optim.schedule",
    "optim.warmup_steps",
    "optim.warmup_fraction",
    "optim.final_fraction",
)

SOURCES = ("data.train", "data.validation")
LATER_OPTIONS = ("delimiter", "encoding", "filter")  # of a source


def flat(config: Config) -> dict[str, Any]:
    """Every leaf of the configuration under its dotted key, as plain values; a list of sources is one leaf."""

    def walk(value: Any, key: str) -> dict[str, Any]:
        if dataclasses.is_dataclass(value):
            inner = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return {k: v for name, v in inner.items() for k, v in walk(v, f"{key}.{name}" if key else name).items()}
        if isinstance(value, list):
            value = [
                dataclasses.asdict(v) if dataclasses.is_dataclass(v) and not isinstance(v, type) else v for v in value
            ]
        return {key: value}

    return walk(config, "")


def bound(config: Config) -> dict[str, Any]:
    """Of `flat` what training's numbers depend on: what may not change when a run goes on."""
    free = tuple(f"{key}." for key in FREE_KEYS)
    kept = {key: value for key, value in flat(config).items() if not f"{key}.".startswith(free)}
    return kept | {name: _as_before(kept[name]) for name in SOURCES}


def _as_before(sources: Any) -> Any:
    """Sources without the options that are not given and that runs from before them did not know."""
    if not isinstance(sources, list):
        return sources
    return [{key: v for key, v in source.items() if v or key not in LATER_OPTIONS} for source in sources]


DEFAULTS: Mapping[str, Any] = bound(Config())


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of `bound`, as it is now or stands in a checkpoint, what tells this run from another one.

    Keys that this objective and tuning do not use are left out, and so are places. A key that the program did not have
    when the checkpoint was written has its default, under which nothing has changed.
    """
    ignored = unused(values)
    kept = {**DEFAULTS, **values}
    for key, ending in PLACES_IF_FILES.items():
        if str(kept.get(key)).endswith(ending):
            kept[key] = f"a {ending} file"
    for key, kind in ENTRIES.items():
        if isinstance(kept.get(key), list):
            kept[key] = [_entry(kind, entry) for entry in kept[key]]
    return {key: value for key, value in kept.items() if key not in PLACES and not f"{key}.".startswith(ignored)}


def _entry(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """One source or part of a reward with all its fields, without its place."""
    missing = {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in dataclasses.fields(kind)
        if field.name not in given
    }
    return {
        name: value
        for name, value in {**missing, **given}.items()
        if name not in PLACES_INSIDE and value is not dataclasses.MISSING
    }


def unused(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Beginnings of the keys that mean nothing to a run."""
    objective, tuning = values.get("objective", "causal_lm"), values.get("tuning.kind", "full")
    sections = [name for name, value in vars(TuningConfig()).items() if dataclasses.is_dataclass(value)]
    is_used = {
        **{f"{key}.": objective in objectives for key, objectives in own_keys().items()},
        **{f"tuning.{name}.": tuning == name for name in sections},
        "tuning.double_quantization.": values.get("tuning.quantization") == "nf4",
        "data.streaming_window_rows.": bool(values.get("data.streaming")),
    }
    return tuple(key for key, used in is_used.items() if not used)


def fingerprint(config: Config) -> str:
    """sha256 of `identity`."""
    return hashlib.sha256(json.dumps(identity(bound(config)), sort_keys=True, ensure_ascii=False).encode()).hexdigest()
