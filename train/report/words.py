"""Formats numbers and results as text, for the terminal and for report.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from train.report.run import Change, Run, has_relative_change
from zerotune.common.console import counted, duration
from zerotune.common.metric_format import SHARE, UNBOUNDED, Scale, percent

_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>|</?s>")
_ROLES = {"system", "user", "assistant", "model", "<think>", "</think>"}


def number(value: float | None, scale: Scale = UNBOUNDED) -> str:
    """Format a value as the evaluation's report does."""
    return "-" if value is None else scale.number(value)


def title(name: str) -> str:
    """A metric's name for readers: exact_match -> exact match."""
    return name.replace("_", " ")


def difference(change: Change) -> str:
    """A change: percentage points for shares, a factor for perplexities, else relative or absolute."""
    if change.before is None or change.chosen is None:
        return "-"
    if change.scale is SHARE or change.scale.is_ratio:
        between = change.scale.between(change.before, change.chosen)
        return change.scale.change(between) + change.scale.unit
    if (
        not has_relative_change(change.name) or change.before * change.chosen <= 0
    ):  # no ratio to zero, or to a value of another sign
        return change.scale.change(change.chosen - change.before)
    relative = change.chosen / change.before - 1
    fine = abs(relative) < 0.01 or 0.985 < abs(relative) < 1  # do not round -0.4 % to -0 %, or -99.6 % to -100 %
    return f"{100 * relative:+.1f} %" if fine else f"{100 * relative:+.0f} %"


def merge_choice(run: Run) -> str:
    """Which checkpoint the numbers after training belong to, and whether it is merged."""
    if run.setting("merge.checkpoint") == "last":
        which = "the last checkpoint"
    else:
        which = f"the best checkpoint by {title(run.chosen_by)} (of equal ones, the lowest loss, then the last)"
    return which + (", which is merged" if run.is_merged else "; not merged yet")


def headline(run: Run) -> str:
    """The result in one sentence."""
    changes = [change for change in run.changes() if change.before is not None and change.chosen is not None]
    if not changes:
        if not run.last_step:
            return "No step has been written yet."
        loss = list(run.training_loss.values())
        trained = f"Training loss {number(loss[0])} → {number(loss[-1])}" if loss else f"Trained {_seen(run)}"
        steps = [step for _, step, _ in run.validations()]
        when = " before training" if any(steps) else " after training" if steps else ""
        return f"{trained}; no validation{when}."
    parts = []
    for change in changes:
        if change.lower_is_better is None:  # neither direction is better
            continue
        worse = " (worse)" if change.better is False else ""
        before, after = number(change.before, change.scale), number(change.chosen, change.scale)
        parts.append(f"{title(change.name)} {before} → {after}{worse}")
    return f"On held-out rows, before → after: {', '.join(parts)}."


def over_epochs(run: Run, most: int, metrics: int = 99) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of validations: at most `most`, evenly spaced, with the first, best and last.

    metrics: number of metrics, that which chooses the best checkpoint first.
    """
    scales = {change.name: change.scale for change in run.changes()[:metrics]}
    validations = run.validations()
    if len(validations) < 3:  # the table of before and after has them all
        return [], []
    count = min(most, len(validations))
    kept = {round(k * (len(validations) - 1) / (count - 1)) for k in range(count)}
    rows = [
        [
            "before" if not step else "-" if epoch is None else f"{epoch:.4g}",
            f"{step:,}{' *' * (step == run.merge_step)}",
            *(number(values.get(name), scale) for name, scale in scales.items()),
        ]
        for index, (epoch, step, values) in enumerate(validations)
        if index in kept or step == run.merge_step
    ]
    return ["epoch", "step", *map(title, scales)], rows


def samples(run: Run) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of samples, with rewards and references if there are any."""
    pairs = run.samples()
    heads, columns = ["prompt"], [[last_turn(pair.prompt) for pair in pairs]]
    is_rewarded = any(pair.after_reward is not None for pair in pairs)
    for head in ("before", "after"):
        heads.append(head)
        columns.append([answer(getattr(pair, head)) for pair in pairs])
        if is_rewarded:
            heads.append("reward")
            columns.append([number(getattr(pair, f"{head}_reward")) for pair in pairs])
    if any(pair.reference for pair in pairs):
        heads.append("reference")
        columns.append([pair.reference or "" for pair in pairs])
    return heads, [list(row) for row in zip(*columns, strict=True)]


def trained_share(run: Run) -> str:
    """The share of trained parameters; empty if unknown."""
    counts = _mapping(run.run_info.get("parameters"))
    return f"{percent(counts['trained'] / counts['total'])} of the parameters trained" if counts.get("total") else ""


def overview(run: Run) -> list[tuple[str, str]]:
    """Costs and outcome of the run, as (name, text)."""
    memory, padding = max(run.curve("train/memory_gb").values(), default=None), run.median("train/padding_share")
    found = [
        ("Trained", _parameters(run)),
        ("Seen", _seen(run)),
        ("Time", _time(run)),
        ("Ended", str(run.run_info.get("ended") or "")),
        ("Speed", _speed(run)),
        ("Memory", "" if memory is None else f"{memory:.2f} GB at the peak"),
        ("Padding", "" if padding is None else f"{percent(padding)} of the computed positions"),
        ("Skipped", _skipped(run)),
        ("Device", _where(run)),
        ("Merged", str(run.folder / "merged") if run.is_merged else ""),
        ("Checked", _checked(run)),
    ]
    return [(name, text) for name, text in found if text]


def provenance(run: Run) -> list[tuple[str, str]]:
    """What is needed to reproduce the run, as (name, text)."""
    code, versions = _mapping(run.run_info.get("code")), _mapping(run.run_info.get("versions"))
    model, command = _mapping(run.run_info.get("model")), run.run_info.get("command")
    found = [
        ("Command", shlex.join(map(str, command)) if isinstance(command, list) else str(command or "")),
        ("Code", f"{code['commit']}{' with local changes' if code.get('dirty') else ''}" if code.get("commit") else ""),
        (
            "Model",
            " ".join(
                str(word)
                for word in (run.setting("model.path") or run.setting("model.family"), model.get("digest"))
                if word
            ),
        ),
        ("Base", f"stored as {model['quantized']}, dequantised for training" if model.get("quantized") else ""),
        ("Data", str(run.run_info.get("data_digest") or "")),
        ("Chat template", str(run.run_info.get("template_hash") or "")),
        (
            "Recipe",
            f"config.yaml, fingerprint {run.run_info['fingerprint']}" if run.run_info.get("fingerprint") else "",
        ),
        ("Versions", ", ".join(f"{name} {release}" for name, release in versions.items() if release)),
    ]
    return [(name, text) for name, text in found if text]


def last_turn(prompt: str) -> str:
    """The last message of a prompt, without the chat template's special tokens and role names."""
    turns = [readable(turn) for turn in _SPECIAL_TOKEN.split(prompt)]
    if len(turns) == 1:  # plain text
        return turns[0]
    texts = ["\n".join(line for line in turn.splitlines() if line not in _ROLES) for turn in turns]
    return next((text for text in reversed(texts) if text), "")


def readable(text: str) -> str:
    """The text without special tokens and blank lines."""
    lines = (line.strip() for line in _SPECIAL_TOKEN.sub("\n", text).splitlines())
    return "\n".join(line for line in lines if line)


def answer(text: str | None) -> str:
    """A sample's answer for readers: "-" if there is none, "(blank)" if it has no visible text."""
    if text is None:
        return "-"
    return readable(text) or "(blank)"


def shortened(text: str, characters: int) -> str:
    """The text, truncated to `characters`."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _parameters(run: Run) -> str:
    counts = _mapping(run.run_info.get("parameters"))
    if not counts.get("total"):
        return ""
    kind, quantization = run.setting("tuning.kind"), run.setting("tuning.quantization")
    how = f", {kind}" if kind else ""
    how += f" on {quantization}" if quantization not in (None, "none") else ""
    trained, total = counts["trained"], counts["total"]
    return f"{percent(trained / total)} of the parameters ({trained:,} of {total:,}{how})"


def _seen(run: Run) -> str:
    tokens, epochs = run.last("train/tokens"), run.last("train/epoch")
    words = [counted(run.last_step, "step")]
    words += [f"{tokens:,.0f} tokens"] if tokens is not None else []
    words += [f"{epochs:.4g} epoch{'s' * (epochs != 1)}"] if epochs else []
    return ", ".join(words)


def _time(run: Run) -> str:
    resumed = run.processes - 1
    return duration(run.seconds) + (f", resumed {counted(resumed, 'time')}" if resumed else "")


def _speed(run: Run) -> str:
    speed, mfu = run.median("train/tokens_per_second"), run.median("train/mfu")
    if speed is None:
        return ""
    source = _mapping(run.run_info.get("peak")).get("source")
    used = f", model FLOPs utilisation {percent(mfu)}" if mfu is not None else ""
    return f"{speed:,.0f} tokens/s{used}" + (f" (peak: {source})" if used and source else "")


def _skipped(run: Run) -> str:
    skipped = run.last("train/skipped_steps")
    return f"{skipped:.0f} updates, with a gradient that was not finite or a spike of the loss" if skipped else ""


def _where(run: Run) -> str:
    ranks = run.run_info.get("world_size")
    words = [run.run_info.get("device"), counted(ranks, "rank") if ranks else None]
    words += [
        None if run.run_info.get("sharding") == "single" else run.run_info.get("sharding"),
        run.run_info.get("precision"),
    ]
    return ", ".join(str(word) for word in words if word)


def _checked(run: Run) -> str:
    comparison, by_base = _mapping(run.merge.get("comparison")), _mapping(run.merge.get("divergence"))
    if "mean_kl" not in comparison:
        return ""
    kl = f"KL {comparison['mean_kl']:.2g} nats"
    if not by_base:
        return f"the merged model answers as the trained one ({kl})"
    shown = ", ".join(f"{name} {value:.2g} nats" for name, value in by_base.items())
    chosen = run.merge.get("quantized_base")
    return (
        f"the merged model answers as the {chosen} base with the adapter ({kl}); "
        f"KL from the trained quantised model, to which all metrics above belong, by base: {shown}"
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
