"""Finds tensors of a model's files that the model does not use, and parameters without a tensor, before loading."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from zerotune.models.dequantize import require_no_packed
from zerotune.models.folder import weight_files

log = logging.getLogger(__name__)

RECOMPUTED = re.compile(r"rotary_emb\.inv_freq$|(^|\.)position_ids$|\.attn\.(masked_)?bias$")  # the model makes its own
_reported: set[tuple[str, str]] = set()


def names_in_files(folder: Path) -> list[str]:
    """Of every tensor of a model."""
    names: list[str] = []
    for file in weight_files(folder):
        with safe_open(file, "pt") as handle:
            names += handle.keys()
    return names


def unread(skeleton: Any, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(tensors of the files that the model has no place for, places for which the files have none), sorted.

    By transformers' own rules of renaming and joining, but without its lists of what to pass over in silence.
    """
    places = skeleton.state_dict()
    steps = get_model_conversion_mapping(skeleton)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    lost, filled = [], set()
    for name in names:
        ways: tuple[tuple[Any, Any], ...] = ((renamings, converters), ([], []))
        targets = [rename_source_key(name, *way, skeleton.base_model_prefix, places)[0] for way in ways]
        target = next((target for target in targets if target in places), None)
        if target is None:
            lost.append(name)
        else:
            filled.add(target)
    tied = skeleton.all_tied_weights_keys
    filled |= {name for pair in tied.items() if filled & set(pair) for name in pair}
    return sorted(name for name in lost if not RECOMPUTED.search(name)), sorted(set(places) - filled)


def report_unread(folder: Path, lost: Sequence[str]) -> None:
    """Name, once, what of a model's files is not read.

    Raises UserError for parts of quantised weights: the config has lost its quantization_config.
    """
    require_no_packed(folder, lost)
    used = {path.name for path in weight_files(folder)}
    files = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in used)
    if lost:
        log_once(logging.WARNING, folder, f"not read, and not in the model that results: {patterns(lost)}")
    if files:
        log_once(logging.WARNING, folder, f"weight files that are not read: {', '.join(files)}")


def patterns(names: Sequence[str], shown: int = 8) -> str:
    """Summarise names: numbers become *, with a count for each pattern."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    words = [name if count == 1 else f"{name} ({count})" for name, count in counts.items()]
    more = f" and {len(words) - shown} more kinds" if len(words) > shown else ""
    return ", ".join(words[:shown]) + more


def log_once(level: int, folder: Path, text: str) -> None:
    """Log a line about a folder, once in a process, on the first rank."""
    if (str(folder), text) not in _reported and int(os.environ.get("RANK", 0)) == 0:
        _reported.add((str(folder), text))
        log.log(level, "%s: %s", folder, text)
