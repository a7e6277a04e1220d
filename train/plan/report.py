"""A plan for the terminal (80 columns), as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence

from train.plan.plan import Machine, Plan
from zerotune.common.byte_sizes import GB, gigabytes
from zerotune.common.console import counted, duration
from zerotune.common.markdown import table

COLUMNS = 80
FITS = {True: "yes", False: "no", None: "?"}
Rows = list[tuple[str, str]]


def title(plan: Plan) -> str:
    """Model, sharding, and the phase whose memory is shown."""
    return f"{plan.name}: {plan.layout.kind}, {counted(plan.layout.ranks, 'GPU')}; memory in the {plan.phase}"


def memory_rows(plan: Plan, machine: Machine) -> Rows:
    """The memory of the fullest rank, by part, largest first."""
    parts = sorted(plan.parts.items(), key=lambda item: -item[1])
    sums = [("together", gigabytes(plan.memory)), ("memory of a GPU", gigabytes(machine.memory))]
    host = [("on the host, for each rank", gigabytes(plan.host))] if plan.host else []
    return [*((name, gigabytes(size)) for name, size in parts), *sums, *host]


def run_rows(plan: Plan) -> Rows:
    """Batches, time, disk, communication."""
    shape, ranks, count = plan.shape, plan.layout.ranks, plan.layout.micro_batches
    layout = "padded" if shape.masked else "packed"
    found = [
        ("parameters", f"{plan.trained:,} of {plan.total:,} trained"),
        ("step", f"{plan.step_tokens:,} tokens on {counted(ranks, 'GPU')}"),
        ("micro-batches of a rank", f"{count:,} of {shape.tokens:,} tokens ({layout})"),
        ("work", "?" if plan.flops_per_token is None else f"{plan.flops_per_token / 1e9:,.2f} GFLOP for a token"),
        ("sent by a rank in a step", gigabytes(plan.sent)),
        ("a checkpoint", f"{gigabytes(plan.checkpoint)}, there are {plan.checkpoints} at most"),
        *([("merged model", gigabytes(plan.merged))] if plan.merged else []),
        ("free disk", gigabytes(plan.free_disk)),
    ]
    if plan.busy < ranks and not plan.config.spec.asks:  # then steps have sampled rows
        found.append(
            ("busy GPUs", f"{plan.busy:,}: a step has no more rows of full length; raise batch.tokens_per_step")
        )
    if plan.token_cache is not None:
        found.append(("token cache", f"about {gigabytes(plan.token_cache)}; free: {gigabytes(plan.free_for_cache)}"))
    about = "about " if plan.is_estimated else ""
    if plan.tokens is not None:
        how = " (from the sizes of the files, 4 bytes a token)" if about else " at most"
        found.append(("run", f"{about}{counted(plan.steps or 0, 'step')}, {plan.tokens:,} tokens{how}"))
    if plan.seconds is not None:
        hours = plan.seconds * ranks / 3600
        found.append(("time", f"{about}{duration(plan.seconds)}, {hours:,.1f} GPU hours"))
    return found


def verdict(plan: Plan, machine: Machine) -> str:
    """Whether it fits."""
    free, fits = machine.memory - plan.memory, plan.fits(machine)
    if fits is None:
        left = f"{gigabytes(free)} are left for what is missing in the sum, " if free > 0 else ""
        return f"Whether it fits is NOT KNOWN: {left}see below."
    if fits:
        return f"It fits: {gigabytes(free)} of {gigabytes(machine.memory)} stay free."
    return f"It does NOT fit: {gigabytes(-free)} more than {gigabytes(machine.memory)} are needed."


def notes(plan: Plan, machine: Machine, change: str | None, fastest: str | None) -> list[str]:
    """Verdict, advice, conflicts, and what is not known."""
    lines = [verdict(plan, machine)]
    if plan.fits(machine) is False:
        lines.append(f"Smallest change that fits: {change}" if change else "No change that is known here is enough.")
    if plan.is_whole:
        on = f"on {counted(plan.layout.ranks, 'GPU')}"
        lines.append(
            f"No setting of this recipe fits {on}."
            if fastest is None
            else f"Fastest setting that fits {on}: {fastest or 'this one'}"
        )
    if plan.disk > plan.free_disk:
        lines.append(
            f"The disk has no room for {gigabytes(plan.disk)} of checkpoints and merged model: lower "
            "checkpoint.keep_last, set merge.at_end false, or another run.folder."
        )
    if plan.token_cache is not None and plan.token_cache > plan.free_for_cache:
        lines.append("The disk has no room for the token cache: set data.cache_folder, or data.streaming.")
    lines += [f"Conflict: {line}" for line in plan.conflicts]
    return [*lines, *(f"Not known: {text}." for text in plan.unknown)]


def scaling(plans: Sequence[Plan], machine: Machine) -> tuple[list[str], list[list[str]]]:
    """The table of --ranks: heads and rows."""
    heads = ["GPUs", "sharding", "GB per GPU", "fits", "time", "GPU hours", "GB sent"]
    rows = [
        [
            f"{plan.layout.ranks:,}",
            plan.layout.kind,
            f"{plan.memory / GB:,.1f}",
            FITS[plan.fits(machine)],
            duration(plan.seconds) if plan.seconds is not None else "?",
            f"{plan.seconds * plan.layout.ranks / 3600:,.1f}" if plan.seconds is not None else "?",
            f"{plan.sent / GB:,.2f}",
        ]
        for plan in plans
    ]
    return heads, rows


def as_text(plan: Plan, machine: Machine, lines: Sequence[str], plans: Sequence[Plan]) -> str:
    """For a terminal of 80 columns."""
    found = [title(plan), ""]
    for rows in (memory_rows(plan, machine), run_rows(plan)):
        found += [
            textwrap.fill(value, COLUMNS, initial_indent=f"  {name:<32}", subsequent_indent=" " * 34)
            for name, value in rows
        ] + [""]
    for line in lines:
        found.append(textwrap.fill(line, COLUMNS, subsequent_indent="  ", break_on_hyphens=False))
    if plans:
        heads, rows_ = scaling(plans, machine)
        widths = [max(len(row[k]) for row in (heads, *rows_)) for k in range(len(heads))]
        found += ["", *("  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in (heads, *rows_))]
    return "\n".join([*found, ""])


def as_markdown(plan: Plan, machine: Machine, lines: Sequence[str], plans: Sequence[Plan]) -> str:
    """For a page."""
    found = [f"# {title(plan)}", ""]
    found += [table(["memory", "GB"], [list(row) for row in memory_rows(plan, machine)], right=["GB"]), ""]
    found += [table(["run", ""], [list(row) for row in run_rows(plan)]), "", *(f"- {line}" for line in lines)]
    if plans:
        heads, rows = scaling(plans, machine)
        found += ["", table(heads, rows, right=heads)]
    return "\n".join([*found, ""])


def as_json(plan: Plan, machine: Machine, lines: Sequence[str], plans: Sequence[Plan]) -> str:
    """For programs: sizes in bytes, times in seconds."""

    def plain(one: Plan) -> dict[str, object]:
        values = {f.name: getattr(one, f.name) for f in dataclasses.fields(one) if f.name not in ("config", "layout")}
        nested = {"sharding": dataclasses.asdict(one.layout), "shape": dataclasses.asdict(one.shape)}
        return {**values, **nested, "memory": one.memory, "fits": one.fits(machine), "busy": one.busy}

    whole = {**plain(plan), "machine": dataclasses.asdict(machine), "notes": list(lines)}
    return json.dumps({**whole, "scaling": [plain(one) for one in plans]}, indent=2, ensure_ascii=False) + "\n"
