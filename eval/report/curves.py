"""Writes metrics as TensorBoard scalars: evaluations of a training run's checkpoints form a curve over its steps."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path

from eval.result import Result
from zerotune.common.event_file import EventFile
from zerotune.common.files import cannot_write


def write_curves(result: Result, folder: Path) -> None:
    """Write FOLDER/RUN/events...: a point for each metric of each model, at the step in its run.json, else 0.

    RUN is the name of the checkpoint's training run, else of the model. Raises CannotWriteError.
    """
    for model in result.models:
        run, step = (model.origin.run, model.origin.step) if model.origin else (model.name, 0)
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
