"""Writes the report, verdicts first, and all other files of an evaluation's folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from eval.report import sheets
from eval.report.curves import write_curves
from eval.report.figure import draw
from eval.report.html import page
from eval.report.pairs_figure import draw_pairs
from eval.report.terminal import show
from eval.report.text import markdown, summary
from eval.result import Evaluation, sample_lines
from zerotune.common.files import cannot_write, write_atomically
from zerotune.common.mask_secrets import mask_all

__all__ = ["markdown", "show", "summary", "write"]


def write(evaluation: Evaluation, folder: Path, tensorboard: Path | None = None) -> None:
    """Write report.html, report.md, metrics.png, words-N.png (of tables with pairs), samples/TASK.MODEL.jsonl,
    TensorBoard curves (default: `folder`/tensorboard) and result.json, without secrets of the environment.

    Raises CannotWriteError.
    """
    evaluation = mask_all(evaluation)
    for task, models in evaluation.samples.items():
        for name, samples in zip(_file_names(list(models)), models.values(), strict=True):
            write_atomically(folder / "samples" / f"{task}.{name}.jsonl", sample_lines(samples))
    picture = draw(evaluation.result)
    if picture is not None:
        _write_picture(folder / "metrics.png", picture)
    drawn = [sheet for task in evaluation.result.tasks for sheet in sheets.of_task(task) if sheet.pairs and sheet.rows]
    pictures = {sheet.title: f"words-{k}.png" for k, sheet in enumerate(drawn, start=1)}
    for sheet in drawn:
        _write_picture(folder / pictures[sheet.title], draw_pairs(sheet))
    write_curves(evaluation.result, tensorboard or folder / "tensorboard")
    write_atomically(folder / "report.html", page(evaluation))
    write_atomically(folder / "report.md", markdown(evaluation, "metrics.png" if picture else None, pictures))
    write_atomically(folder / "result.json", evaluation.result.to_json())  # last: it marks a complete folder


def _file_names(models: Sequence[str]) -> list[str]:
    """Distinct file names of models; letters of any script are kept."""
    names = [re.sub(r"[^\w.-]+", "-", model) for model in models]
    return [name if names.index(name) == k else f"{name}-{k + 1}" for k, name in enumerate(names)]


def _write_picture(path: Path, picture: bytes) -> None:
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise cannot_write(path, error) from error
