"""What of a recipe training's numbers depend on: its keys, and one digest of them all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from train.config import Config

# Keys that may change between a run and its resumption: they alter no number that training computes.
FREE_KEYS = (
    "run.folder",
    "run.resume",
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
    return kept | {name: [_as_before(source) for source in kept[name]] for name in SOURCES}


def _as_before(source: Any) -> Any:
    """A source without the options that are not given and that runs from before them did not know."""
    if not isinstance(source, dict):
        return source
    return {key: value for key, value in source.items() if value or key not in LATER_OPTIONS}


def fingerprint(config: Config) -> str:
    """sha256 of `bound`."""
    return hashlib.sha256(json.dumps(bound(config), sort_keys=True, ensure_ascii=False).encode()).hexdigest()
