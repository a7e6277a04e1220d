"""The metrics as TensorBoard scalars: evaluations of one training run's checkpoints make a curve over its steps."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.event_file import EventFile
from eval.files import cannot_write
from eval.result import ModelInfo, Result


def write_curves(result: Result, folder: Path) -> None:
    """FOLDER/RUN/events...: one point for each metric of each model, at the step that its run.json names, or 0.

    A checkpoint of a known run is written under the run's name, any other under its own. Raises CannotWriteError.
    """
    for model in result.models:
        run, step = origin(model)
        scalars = {
            f"{task.name}/{metric.name}": estimate.value
            for task in result.tasks
            for metric in task.metrics
            for estimate in metric.estimates
            if estimate.model == model.name and math.isfinite(estimate.value)
        }
        place = folder / (re.sub(r"[^\w.-]+", "-", run).strip(".") or "model")
        try:
            with contextlib.closing(EventFile(place, kept_step=None)) as events:
                events.scalars(step, scalars)
        except OSError as error:
            raise cannot_write(place, error) from error


def origin(model: ModelInfo) -> tuple[str, int]:
    """The training run's name and the step that the checkpoint stands at, as its run.json says."""
    facts = _facts(Path(model.path) / "run.json")
    merge, config = facts.get("merge"), facts.get("config")
    step = merge.get("step") if isinstance(merge, Mapping) else None
    run = config.get("run") if isinstance(config, Mapping) else None
    folder = run.get("folder") if isinstance(run, Mapping) else None
    if not isinstance(step, int) or not isinstance(folder, str):
        return model.name, 0
    return Path(folder).name or model.name, step


def _facts(path: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
