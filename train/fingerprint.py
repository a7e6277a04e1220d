"""The recipe keys that affect training's numbers, and one digest of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from train.config import Config, TuningConfig
from train.registry import OBJECTIVES, own_keys
from zerotune.common.schema import is_section, kind_at, leaf_keys, value_at
from zerotune.common.yaml_lines import dotted

# Keys that may change when a run resumes: they do not affect training's numbers.
FREE_KEYS = (
    "run.folder",
    "run.resume",
    "run.extend",
    "run.stop_after_minutes",
    "run.stop_at_share",
    "run.hang_seconds",
    "batch.tokens_per_micro_batch",
    "checkpoint",
    "watch",
    "merge",
    "check",
    "validation.samples",
    "data.cache_folder",
    "data.workers",
)
# Locations that may change: digests check the content (train/checkpoint/manager.py). A value without the ending is a
# name, which must not change.
PLACES: Mapping[str, str] = {
    "model.path": "", "model.revision": "", "model.tokenizer": "", "data.chat_template": ".jinja",
    **{key: ending for spec in OBJECTIVES.values() for key, ending in spec.places.items()},
}  # fmt: skip
PLACES_INSIDE = ("path", "revision", "split")  # of the entries of lists: sources, reward components
ENTRIES: Mapping[str, Any] = {  # key of a list of sections -> their type
    dotted(key): kind_at(Config, (*key, 0)) for key in leaf_keys(Config) if is_section(kind_at(Config, (*key, 0)))
}
# Keys that `run.extend` may change: the end, and the learning rate until then.
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
    """All settings by dotted key, as plain values; a list of sources is one setting."""
    values = dataclasses.asdict(config)
    return {dotted(key): value_at(values, key) for key in leaf_keys(Config)}


def bound(config: Config) -> dict[str, Any]:
    """The part of `flat` that affects training's numbers, and must not change when a run resumes."""
    free = tuple(f"{key}." for key in FREE_KEYS)
    kept = {key: value for key, value in flat(config).items() if not f"{key}.".startswith(free)}
    return kept | {name: _without_unset(kept[name]) for name in SOURCES}


def _without_unset(sources: Any) -> Any:
    """Sources without LATER_OPTIONS that are not set: runs of earlier versions do not have them."""
    if not isinstance(sources, list):
        return sources
    return [{key: v for key, v in source.items() if v or key not in LATER_OPTIONS} for source in sources]


DEFAULTS: Mapping[str, Any] = bound(Config())


def identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `bound`, of this run or from a checkpoint, that must be equal when a run resumes.

    It excludes locations, and keys that this objective and tuning do not use. Keys that are newer than the checkpoint
    have their default, which does not change results.
    """
    ignored = unused(values)
    kept = {**DEFAULTS, **values}
    for key, ending in PLACES.items():
        if ending and str(kept.get(key)).endswith(ending):
            kept[key] = f"a {ending} file"
    for key, kind in ENTRIES.items():
        if isinstance(kept.get(key), list):
            kept[key] = [_entry(kind, entry) for entry in kept[key]]
    return {k: value for k, value in kept.items() if PLACES.get(k) != "" and not f"{k}.".startswith(ignored)}


def _entry(kind: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of a list (a source, a reward component) with all its fields, without its location."""
    missing = {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in dataclasses.fields(kind)
        if field.name not in fields
    }
    return {
        name: value
        for name, value in {**missing, **fields}.items()
        if name not in PLACES_INSIDE and value is not dataclasses.MISSING
    }


def unused(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Prefixes of the keys that a run does not use."""
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
    return hashlib.sha256(json.dumps(identity(bound(config)), sort_keys=True, ensure_ascii=False).encode()).hexdigest()
