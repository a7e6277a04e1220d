"""Writes the metrics of a run: metrics.jsonl, TensorBoard, samples of the model's answers, a progress bar.

docs/watching.md lists the metrics. A write error never stops training: that file is disabled, with one warning.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from train.config import WatchConfig
from train.engine.progress import ProgressBar
from train.protocols import Sample
from zerotune.common.errors import CannotWriteError
from zerotune.common.event_file import EventFile
from zerotune.common.files import write_atomically
from zerotune.common.markdown import table
from zerotune.common.mask_secrets import mask_all

# The first columns of TensorBoard's table of hyperparameters; all others follow by name.
_FIRST_SHOWN = ("objective", "optim.learning_rate", "batch.tokens_per_step", "model.path", "tuning.kind")
log = logging.getLogger(__name__)


class Board:
    """Writes metrics on the main process; on the others every method does nothing.

    Files in the run folder:
        metrics.jsonl: one JSON object per line. Every line has `step` and `time` (seconds since 1970); a number that
            is not finite is null. A line with `start: true` marks where a process began or resumed.
        events.out.tfevents.*: the same for TensorBoard, with hyperparameters and samples. They are in the run folder
            itself, since TensorBoard names a run after the folder of its events.
        samples/step-000120.jsonl: one `Sample` per line.
    """

    def __init__(self, run_folder: Path, config: WatchConfig, main_process: bool) -> None:
        self._folder = run_folder
        self._bar = ProgressBar(main_process)
        self._off = set() if main_process else {"metrics.jsonl", "tensorboard", "samples"}
        if not config.tensorboard:
            self._off.add("tensorboard")
        self._lines: IO[str]
        self._events: EventFile
        self._close = contextlib.ExitStack()

    def start(self, step: int, total_steps: int | None) -> None:
        """Open the files to continue after `step`, and remove what an earlier process wrote of later steps. Call first.

        With step 0, the files start empty.
        """
        kept = step if step > 0 else -1  # values from before the first step are written again
        self._try("samples", lambda: _remove_beyond(self._folder / "samples", kept))
        self._try("metrics.jsonl", lambda: self._open_metrics(kept))
        self._append({"step": step, "time": round(time.time(), 3), "start": True})
        self._try("tensorboard", lambda: self._open_events(kept))
        self._bar.start(step, total_steps)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write metrics of optimizer step `step`, by name (`train/loss`, `validation/loss`, ...)."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._append({"step": step, "time": round(time.time(), 3), **finite})
        self._try("tensorboard", lambda: self._events.scalars(step, values))

    def progress(self, step: int, loss: float, tokens_per_second: float) -> None:
        self._bar.update(step, loss, tokens_per_second)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write the model's answers to a few prompts at `step`."""
        if not samples:
            return
        samples = mask_all(samples)
        lines = "".join(json.dumps(_fields(sample), ensure_ascii=False) + "\n" for sample in samples)
        self._try("samples", lambda: write_atomically(self._folder / "samples" / f"step-{step:06d}.jsonl", lines))
        is_rewarded = any(sample.reward is not None for sample in samples)
        self.text(step, "samples", _tables(samples) if is_rewarded else "\n\n---\n\n".join(map(_markdown, samples)))

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Write a page for TensorBoard's tab TEXT."""
        self._try("tensorboard", lambda: self._events.text(step, tag, markdown))

    def hyperparameters(self, flat: Mapping[str, Any]) -> None:
        """Write the recipe by dotted keys (`train.fingerprint.flat`), for TensorBoard's tab HPARAMS."""
        masked = mask_all(dict(flat))
        # TensorBoard shows True as 1.0.
        plain = {k: v if type(v) in (int, float) else str(v) for k, v in masked.items()}
        self._try("tensorboard", lambda: self._events.hyperparameters(plain, first=_FIRST_SHOWN))

    def close(self) -> None:
        """Close all files. Later calls do nothing."""
        self._bar.close()
        with contextlib.suppress(OSError):  # a full disk, reported before
            self._close.close()
        self._off |= {"metrics.jsonl", "tensorboard", "samples"}

    def _open_metrics(self, kept: int) -> None:
        path = self._folder / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _cut(path, kept)
        self._lines = self._close.enter_context(path.open("a", encoding="utf-8"))

    def _open_events(self, kept: int) -> None:
        earlier = self._folder / "tensorboard"  # the folder of earlier versions, which a resumed run keeps
        folder = earlier if earlier.exists() else self._folder
        self._events = self._close.enter_context(contextlib.closing(EventFile(folder, kept)))

    def _append(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line) + "\n"
        self._try("metrics.jsonl", lambda: (self._lines.write(text), self._lines.flush()))

    def _try(self, what: str, write: Callable[[], object]) -> None:
        """Write, and disable `what` for the rest of the run after its first error."""
        if what in self._off:
            return
        try:
            write()
        except (OSError, CannotWriteError) as error:
            self._off.add(what)
            log.warning(
                "%s in %s could not be written and is now disabled; training continues: %s", what, self._folder, error
            )


def _cut(path: Path, kept_step: int) -> None:
    """Keep the lines up to `kept_step`, without a line that a killed process left incomplete."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= kept_step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            continue
    write_atomically(path, "".join(kept))


def _remove_beyond(folder: Path, kept_step: int) -> None:
    for path in folder.glob("step-*.jsonl"):
        if int(path.stem.removeprefix("step-")) > kept_step:
            path.unlink()


def _fields(sample: Sample) -> dict[str, Any]:
    """The fields of a sample, without those of PPO if it has no reward."""
    fields = asdict(sample)
    return {name: fields[name] for name in fields if sample.reward is not None or name not in ("reward", "held_out")}


def _tables(samples: Sequence[Sample]) -> str:
    """Markdown tables of prompts, answers and rewards."""
    parts = []
    for heading, is_held_out in (("Held-out prompts", True), ("Drawn while training", False)):
        rows = [
            (sample.prompt, sample.answer, "" if sample.reward is None else f"{sample.reward:.4g}")
            for sample in samples
            if sample.held_out == is_held_out
        ]
        if rows:
            parts.append(f"**{heading}**\n\n{table(('prompt', 'answer', 'reward'), rows, right=('reward',))}")
    return "\n\n".join(parts)


def _markdown(sample: Sample) -> str:
    def quote(text: str) -> str:  # indented, so that Markdown in it is not rendered
        return "\n".join("    " + line for line in text.splitlines() or [""])

    parts = [f"**Prompt**\n\n{quote(sample.prompt)}", f"**Answer**\n\n{quote(sample.answer)}"]
    if sample.reference is not None:
        parts.append(f"**Reference**\n\n{quote(sample.reference)}")
    return "\n\n".join(parts)
