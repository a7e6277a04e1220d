"""Reads a run folder: curves, metrics before and after training, samples, run.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eval.tasks import TASKS
from train.registry import OBJECTIVES
from zerotune.common.errors import UserError
from zerotune.common.files import json_object
from zerotune.common.mask_secrets import printable_all
from zerotune.common.metric_format import POSITIVE, SHARE, UNBOUNDED, Scale

Curve = Mapping[int, float]  # step -> value, steps rising

# For metrics that run.json does not describe.
_LOWER_IS_BETTER = {"loss": True, "perplexity": True}
_SCALES = {"loss": POSITIVE, "finished": SHARE, "empty": SHARE, "repetition": SHARE}
_ABSOLUTE_CHANGE = ("mcc", "pearson", "margin", "kl", "response_tokens")


def has_relative_change(name: str) -> bool:
    """Whether a relative change of this metric is meaningful: not for metrics from -1 to 1, rewards, or numbers of
    tokens, or metrics that start at zero.
    """
    return name not in _ABSOLUTE_CHANGE and not name.startswith("reward")


def scale_of(name: str) -> Scale:
    """The scale of the evaluation's metric of this name, so that both reports format it alike."""
    return _SCALES.get(name) or _evaluated().get(name, UNBOUNDED)


@cache
def _evaluated() -> Mapping[str, Scale]:
    return {metric.name: metric.scale for task in TASKS.values() for metric in task.metrics}


@dataclass(frozen=True)
class Change:
    """One held-out metric before training, at the step that is merged (`chosen`), and at the end.

    lower_is_better: None if neither direction is better. scale: how to format its values.
    """

    name: str
    before: float | None
    chosen: float | None
    last: float | None
    lower_is_better: bool | None
    scale: Scale

    @property
    def better(self) -> bool | None:
        """Whether training improved the metric; None if unknown, unchanged, or if neither direction is better."""
        if self.before is None or self.chosen is None or self.before == self.chosen or self.lower_is_better is None:
            return None
        return (self.chosen < self.before) == self.lower_is_better


@dataclass(frozen=True)
class SamplePair:
    """One held-out prompt with the answers before and after training, and their rewards if there are any."""

    prompt: str
    before: str | None
    after: str
    reference: str | None
    before_reward: float | None
    after_reward: float | None


@dataclass(frozen=True)
class Run:
    """The content of a run folder.

    run_info: run.json. merge: the part `merge` of the merged folder's run.json.
    curves: by metric name, finite values only.
    seconds: time from the first to the last metric, without gaps between processes.
    processes: 1 + number of times it was resumed.
    """

    folder: Path
    run_info: Mapping[str, Any]
    merge: Mapping[str, Any]
    state: str | None
    curves: Mapping[str, Curve]
    seconds: float
    processes: int
    sample_steps: tuple[int, ...]

    def setting(self, key: str) -> Any:
        """A value of the recipe by dotted key; None if it is not in run.json."""
        value: Any = self.run_info.get("config")
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def curve(self, name: str) -> Curve:
        """The values of a metric by step; empty if the run does not have it."""
        return self.curves.get(name, {})

    @property
    def training_loss(self) -> Curve:
        """The training loss by step; without that of values at a step that has no number."""
        spec = OBJECTIVES.get(str(self.setting("objective")))
        curves = [curve for term in (spec.terms if spec else ("loss",)) if (curve := self.curve(f"train/{term}"))]
        return {step: sum(curve.get(step, 0.0) for curve in curves) for step in curves[0]} if curves else {}

    def last(self, name: str) -> float | None:
        """The last value of a metric."""
        return next(reversed(list(self.curve(name).values())), None)

    def median(self, name: str) -> float | None:
        """The median of a metric, which ignores the slow first steps."""
        values = list(self.curve(name).values())
        return statistics.median(values) if values else None

    @property
    def last_step(self) -> int:
        return max((step for curve in self.curves.values() for step in curve), default=0)

    @property
    def validation_names(self) -> list[str]:
        """Held-out metrics, the one that chooses the best checkpoint first."""
        names = [name.removeprefix("validation/") for name in self.curves if name.startswith("validation/")]
        return sorted(names, key=lambda name: name != self.chosen_by)

    @property
    def chosen_by(self) -> str:
        """The metric that chooses the best checkpoint."""
        named = self.setting("validation.metric")
        return "loss" if named in (None, "auto") else str(named)

    def lower_is_better(self, name: str) -> bool | None:
        """Whether lower values are better, by the objective; None if neither direction is."""
        recorded = self.run_info.get("lower_is_better")
        value = (recorded if isinstance(recorded, dict) else _LOWER_IS_BETTER).get(name)
        return None if value is None else bool(value)

    @property
    def best_step(self) -> int | None:
        """The step of the best validation after the start of training; of equal ones, that with the lowest loss, then
        the last. The training loop chooses in the same way.
        """
        curve = {step: value for step, value in self.curve(f"validation/{self.chosen_by}").items() if step > 0}
        sign = 1 if self.lower_is_better(self.chosen_by) else -1
        loss = self.curve("validation/loss")
        return min(curve, key=lambda step: (sign * curve[step], loss.get(step, 0.0), -step), default=None)

    @property
    def is_merged(self) -> bool:
        """Whether the run folder contains a merged folder."""
        return (self.folder / "merged").is_dir()

    @property
    def merge_step(self) -> int | None:
        """The step of the checkpoint that a merge takes; None without a validation."""
        last = max(self.curve(f"validation/{self.chosen_by}"), default=None)
        return last if self.setting("merge.checkpoint") == "last" else self.best_step

    def changes(self) -> list[Change]:
        """Every held-out metric before and after training."""
        found = []
        for name in self.validation_names:
            curve = self.curve(f"validation/{name}")
            lower = self.lower_is_better(name)
            chosen = curve.get(self.merge_step) if self.merge_step is not None else None
            found.append(Change(name, curve.get(0), chosen, self.last(f"validation/{name}"), lower, scale_of(name)))
        return found

    def validations(self) -> list[tuple[float | None, int, dict[str, float]]]:
        """(epochs done, if known; step; metrics by name) of every validation, in order."""
        epochs = self.curve("train/epoch")
        curves = {name: self.curve(f"validation/{name}") for name in self.validation_names}
        steps = sorted({step for curve in curves.values() for step in curve})
        return [
            (epochs.get(step), step, {name: curve[step] for name, curve in curves.items() if step in curve})
            for step in steps
        ]

    def samples(self) -> list[SamplePair]:
        """The same prompts before training and at the step that is merged, or the last step with samples."""
        after_steps = [step for step in self.sample_steps if step > 0]
        if not after_steps:
            return []
        after = self.merge_step if self.merge_step in after_steps else after_steps[-1]
        before = {s["prompt"]: s for s in self._read_samples(0)} if 0 in self.sample_steps else {}
        pairs = [(before.get(s["prompt"], {}), s) for s in self._read_samples(after)]
        return [
            SamplePair(s["prompt"], b.get("answer"), s["answer"], s.get("reference"), b.get("reward"), s.get("reward"))
            for b, s in pairs
        ]

    def _read_samples(self, step: int) -> list[dict[str, Any]]:
        text = (self.folder / "samples" / f"step-{step:06d}.jsonl").read_text(encoding="utf-8")
        samples = [printable_all(json.loads(line)) for line in text.split("\n") if line]
        return [sample for sample in samples if sample.get("held_out", True)]


def read_run(folder: Path) -> Run:
    """Read a run folder. Missing parts are omitted. Raises UserError if `folder` is not a run folder.

    Texts are made printable here, before a report escapes them: masking does not find an escaped secret.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no metrics.jsonl. Give the recipe's run.folder")
    by_step: dict[str, dict[int, float]] = {}
    seconds, processes, previous = 0.0, 0, None
    for line in _json_lines(path):
        step, time = line.pop("step", None), line.pop("time", None)
        if not isinstance(step, int) or not isinstance(time, (int, float)):
            continue
        if line.pop("start", False):
            processes += 1
        elif previous is not None:
            seconds += max(time - previous, 0.0)
        previous = time
        for name, value in line.items():
            if isinstance(value, (int, float)):
                by_step.setdefault(name, {})[step] = float(value)
    curves = {name: dict(sorted(curve.items())) for name, curve in by_step.items()}
    steps = sorted(int(found.stem.removeprefix("step-")) for found in (folder / "samples").glob("step-*.jsonl"))
    run_info, status = _shown(folder / "run.json"), _shown(folder / "status.json")
    merge = _shown(folder / "merged" / "run.json").get("merge", {})
    return Run(folder, run_info, merge, status.get("state"), curves, seconds, max(processes, 1), tuple(steps))


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # the last line, incomplete after a kill or with a full disk
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _shown(path: Path) -> dict[str, Any]:
    return dict(printable_all(json_object(path)))
