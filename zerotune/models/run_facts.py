"""Facts about the training run of a checkpoint, from run.json beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from zerotune.common.files import json_object


@dataclass(frozen=True)
class RunFacts:
    """How a checkpoint was trained.

    run: the run's folder by name; a trial of a search by study and number. trained, total: parameters. epochs: passes
    over the data up to `step`, None where the run was planned by steps or tokens. data_share: the part of each source's
    rows that was used, None where it differs.
    """

    run: str
    step: int
    trained: int | None = None
    total: int | None = None
    epochs: float | None = None
    data_share: float | None = None


def read_run_json(folder: Path) -> Mapping[str, Any]:
    """The content of run.json; empty without one."""
    return json_object(folder / "run.json")


def template_date_of(facts: Mapping[str, Any]) -> date | None:
    """The date that the run passed to its chat template: that of its first start; None if run.json lacks it."""
    for key in ("template_date", "started"):  # runs from before the first are known by the second
        try:
            moment = datetime.fromisoformat(facts.get(key) or "")
        except (TypeError, ValueError):
            continue
        return moment.astimezone().date() if moment.tzinfo else moment.date()
    return None


def system_prompt_of(facts: Mapping[str, Any]) -> str | None:
    """The run's `data.system_prompt`, empty where it had none; None if run.json has no data."""
    data = _at(facts, "config", "data")
    return str(data.get("system_prompt") or "") if isinstance(data, Mapping) else None


def read_run_facts(folder: Path) -> RunFacts | None:
    """Read a checkpoint's run.json; None if it names no run and step."""
    facts = read_run_json(folder)
    step, run = _at(facts, "merge", "step"), _at(facts, "config", "run", "folder")
    if not isinstance(step, int) or not isinstance(run, str):
        return None
    trained, total = (_at(facts, "parameters", name) for name in ("trained", "total"))
    counted = isinstance(trained, int) and isinstance(total, int) and total > 0
    return RunFacts(
        run=_name(Path(run)) or folder.name,
        step=step,
        trained=trained if counted else None,
        total=total if counted else None,
        epochs=_epochs(facts, step),
        data_share=_data_share(facts),
    )


def _name(run: Path) -> str:
    return f"{run.parent.parent.name}/{run.name}" if run.parent.name == "trials" else run.name


def _at(facts: Any, *keys: str) -> Any:
    for key in keys:
        facts = facts.get(key) if isinstance(facts, Mapping) else None
    return facts


def _epochs(facts: Mapping[str, Any], step: int) -> float | None:
    duration, steps = _at(facts, "config", "duration"), facts.get("total_steps")
    epochs = _at(duration, "max_epochs")
    if not isinstance(epochs, (int, float)) or not isinstance(steps, int) or steps < 1:
        return None
    if any(_at(duration, name) is not None for name in ("max_steps", "max_tokens")):
        return None  # the first that is reached ends the run, so total_steps may be fewer than the epochs have
    return round(epochs * step / steps, 2)


def _data_share(facts: Mapping[str, Any]) -> float | None:
    sources = _at(facts, "config", "data", "train")
    shares = [_at(source, "fraction") for source in sources] if isinstance(sources, list) else []
    alike = bool(shares) and all(share == shares[0] for share in shares)
    return float(shares[0]) if alike and isinstance(shares[0], (int, float)) else None
