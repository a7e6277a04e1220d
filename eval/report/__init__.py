"""The report for people, the answer first; and everything else that an evaluation leaves in its folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from eval.files import cannot_write, write_atomically
from eval.report.curves import write_curves
from eval.report.figure import draw
from eval.report.html import page
from eval.report.terminal import show
from eval.report.text import markdown, summary
from eval.result import Evaluation, sample_lines

__all__ = ["markdown", "show", "summary", "write"]


def write(evaluation: Evaluation, folder: Path, tensorboard: Path | None = None) -> None:
    """report.html, report.md, metrics.png, result.json, samples/TASK.MODEL.jsonl, and TensorBoard's curves (in
    `folder`/tensorboard where no other is named). Raises CannotWriteError.
    """
    for task, models in evaluation.samples.items():
        for name, samples in zip(_file_names(list(models)), models.values(), strict=True):
            write_atomically(folder / "samples" / f"{task}.{name}.jsonl", sample_lines(samples))
    picture = draw(evaluation.result)
    if picture is not None:
        _write_picture(folder / "metrics.png", picture)
    write_curves(evaluation.result, tensorboard or folder / "tensorboard")
    write_atomically(folder / "report.html", page(evaluation))
    write_atomically(folder / "report.md", markdown(evaluation, "metrics.png" if picture else None))
    write_atomically(folder / "result.json", evaluation.result.to_json())  # last: where it stands, all is there


def _file_names(models: Sequence[str]) -> list[str]:
    """Of the models, each another one; letters of any script stay."""
    names = [re.sub(r"[^\w.-]+", "-", model) for model in models]
    return [name if names.index(name) == k else f"{name}-{k + 1}" for k, name in enumerate(names)]


def _write_picture(path: Path, picture: bytes) -> None:
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise cannot_write(path, error) from error
