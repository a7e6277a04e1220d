"""The report of a study: report.md, report.html, figures, best.yaml, and a table of trials for TensorBoard."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import html
import json
import re
import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path

from train.config import Config
from train.recipe import load, to_yaml
from train.report.run import Run, read_run
from train.search import figures
from train.search.comparable import different_tokens
from train.search.draw import distributions
from train.search.fit import RULE, fit_of
from train.search.schedule import Rungs
from train.search.study import Record, Study, best
from zerotune.common.console import counted, duration
from zerotune.common.errors import UserError
from zerotune.common.event_file import EventFile
from zerotune.common.files import json_object, write_atomically
from zerotune.common.markdown import Markup, bold, table
from zerotune.common.mask_secrets import mask, mask_all, printable
from zerotune.common.metric_format import plain

CURVES, BEST = "tensorboard", "best.yaml"
BREAKS = re.compile(r"([_/]|\.(?=\D))")  # where a long name may be divided, so that a table fits
LEAST_COMPARED = 4  # trials that importances need
START = "python -m train.cli train"  # as each trial is started
ANY_PORT = ("--main_process_port", "0")  # of the search itself, whose trials run beside each other


def write_study_report(study: Study) -> Path:
    """Write the report of a study whose trials have ended. Returns the path of report.md.

    Raises UserError if no trial has a result.
    """
    records = study.records()
    leader = best(records, study.sign)
    if leader is None:
        raise UserError(f"{study.folder}: no trial of the search has trained to its end")
    base = load(study.folder / "recipe.yaml")
    _write_best(study, leader, base)
    importances = importances_of(study, records)
    metric, folder = base.validation.metric, study.folder / "report"
    drawn = figures.draw(records, leader, study.space.parameters, metric, study.sign, importances, folder)
    warning = different_tokens(study.space.parameters, metric)
    first = [_headline(study, leader, metric), _summary(study, records), warning]
    sections: list[Section] = [
        ("", [*filter(None, first)], [], []),
        ("Trials", [RULE], *_trials(study, records, leader, metric)),
    ]
    note = _importance_note(study) if importances else f"None: {_why_none(study, records)}."
    sections.append(("Importance of the parameters", [note], *_importances(importances)))
    heading = f"Search: {study.folder.resolve().name}"
    command = _reproduction(study.folder / BEST, leader.launch)
    recipe = (study.folder / BEST).read_text(encoding="utf-8")
    write_atomically(study.folder / "report.md", mask(_markdown(heading, sections, drawn, command, study.folder)))
    write_atomically(study.folder / "report.html", mask(_page(heading, sections, drawn, command, recipe)))
    _write_hyperparameters(study, records, metric)
    return study.folder / "report.md"


def _reproduction(recipe: Path, launch: Sequence[str]) -> str:
    """The command that trains the best recipe as the search did. launch: options of the launcher, and others."""
    words = [word for pair in zip(launch[::2], launch[1::2], strict=True) if pair != ANY_PORT for word in pair]
    return f"{START} {shlex.join(['--config', str(recipe), *words])}"


Section = tuple[str, Sequence[str], Sequence[str], Sequence[Sequence[str]]]  # heading, paragraphs, heads, rows


def _headline(study: Study, leader: Record, metric: str) -> str:
    chosen = ", ".join(f"{key} {json.dumps(value)}" for key, value in study.space.settings(leader.values).items())
    return f"Best: trial {leader.number}, validation {metric} {plain(leader.value or 0.0)}: {chosen}."


def _summary(study: Study, records: Sequence[Record]) -> str:
    states = [record.state for record in records]
    ends = ", ".join(f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed") if state in states)
    steps = sum(record.steps for record in records)
    planned = sum(_total_steps(study, record) for record in records)
    share = f", {100 * steps / planned:.0f} % of what they would have trained to their ends" if steps < planned else ""
    config = study.space.config
    how = f"method {config.method}, pruner {config.pruner}, seed {config.seed}"
    return (
        f"{counted(len(records), 'trial')} ({ends}), {how}; "
        f"{counted(steps, 'step')}{share}; {duration(sum(record.seconds for record in records))} of training in total."
    )


def _total_steps(study: Study, record: Record) -> int:
    facts = json_object(study.trial_folder(record.number) / "run.json")
    return max(int(facts.get("total_steps") or 0), record.steps)


def _trials(study: Study, records: Sequence[Record], leader: Record, metric: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of trials, the best first."""
    names = [parameter.name for parameter in study.space.parameters]
    heads = ["trial", metric, "steps", *names, "state", "fit", "reason"]
    order = {"complete": 0, "pruned": 1}

    def place(record: Record) -> tuple[int, float, int]:
        value = study.sign * record.value if record.value is not None else 0.0
        return order.get(record.state, 2), value, record.number

    rows, runs = [], _runs(study, records)
    for record in sorted(records, key=place):
        value = "-" if record.value is None else plain(record.value)
        run = runs.get(record.number)
        fit = fit_of(run, to_its_end=record.state == "complete") if run else ""
        rows.append(
            [str(record.number), bold(value) if record.number == leader.number else value, f"{record.steps:,}",
             *(_shown(record.values[name]) for name in names), record.state, fit or "-", _reason(record)]
        )  # fmt: skip
    before = _before_training(runs.values(), metric)
    if before is not None:
        rows.append(["-", plain(before), "0", *("-" for _ in names), "untrained", "-", "the model before training"])
    return heads, rows


def _reason(record: Record) -> str:
    again = f"; the first draw was that of trial {record.repeated} again" if record.repeated is not None else ""
    return record.reason + again


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def _runs(study: Study, records: Sequence[Record]) -> Mapping[int, Run]:
    """The run of each trial that began."""
    found = {}
    for record in records:
        with contextlib.suppress(UserError):
            found[record.number] = read_run(study.trial_folder(record.number))
    return found


def _before_training(runs: Collection[Run], metric: str) -> float | None:
    """The value before the first step, where it is the same for all trials."""
    values = {run.curve(f"validation/{metric}").get(0) for run in runs}
    return values.pop() if len(values) == 1 else None


def importances_of(study: Study, records: Sequence[Record]) -> Mapping[str, float]:
    """The share of each parameter in how much the metric varies, by Optuna (PED-ANOVA, arXiv:2304.10255); empty where
    the trials are too few or equal, or there is one parameter.
    """
    import optuna

    known = _compared(study, records)
    if len(known) < LEAST_COMPARED or len(study.space.parameters) == 1:
        return {}
    made = distributions(study.space)
    copy = optuna.create_study(direction="minimize" if study.sign > 0 else "maximize")
    copy.add_trials([optuna.create_trial(params=dict(r.values), distributions=made, value=value) for r, value in known])
    with contextlib.suppress(ValueError, RuntimeError):
        return dict(optuna.importance.get_param_importances(copy))
    return {}


def _compared(study: Study, records: Sequence[Record]) -> list[tuple[Record, float]]:
    """The trials that importances come from, and their values. With rungs: the best up to the first rung, also of the
    trials of hyperband that pass it without a stop.
    """
    if not _has_rungs(study):
        return [(r, r.value) for r in records if r.state == "complete" and r.value is not None]
    share = Rungs.of(study.space.config).shares[0]
    known = [(r, _best_until(r, share * _total_steps(study, r), study.sign)) for r in records]
    return [(r, value) for r, value in known if value is not None]


def _best_until(record: Record, step: float, sign: int) -> float | None:
    """The best value up to the first validation from a step on; None if the trial did not come so far."""
    end = min((other for other in record.validations if other >= step - 1e-9), default=None)
    values = [] if end is None else [value for other, value in record.validations.items() if other <= end]
    return min(values, key=lambda value: sign * value, default=None)


def _has_rungs(study: Study) -> bool:
    return len(Rungs.of(study.space.config).shares) > 1


def _why_none(study: Study, records: Sequence[Record]) -> str:
    """Why a study has no importances."""
    if len(study.space.parameters) == 1:
        return "there is only one parameter"
    known = len(_compared(study, records))
    if known < LEAST_COMPARED:
        where = "reached the first rung" if _has_rungs(study) else "trained to their ends"
        return f"they need {LEAST_COMPARED} trials that {where}, here {known}"
    return "the trials differ too little"


def _importances(importances: Mapping[str, float]) -> tuple[list[str], list[list[str]]]:
    return ["parameter", "importance"], [[name, f"{share:.2f}"] for name, share in importances.items()]


def _importance_note(study: Study) -> str:
    which = "all trials at the first rung" if _has_rungs(study) else "the trials that trained to their ends"
    return f"Of {which}, by Optuna (PED-ANOVA); rough where the trials are few."


def _write_best(study: Study, leader: Record, base: Config) -> None:
    """best.yaml: the recipe of the best trial, to train alone."""
    config = load(study.trial_folder(leader.number) / "recipe.yaml")
    run = dataclasses.replace(config.run, folder=f"{base.run.folder}-best")
    chosen = study.space.settings(leader.values)
    lines = "".join(f"#   {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in chosen.items())
    text = f"# The best recipe of the search {study.folder}, trial {leader.number}, which chose:\n{lines}"
    write_atomically(study.folder / BEST, text + to_yaml(dataclasses.replace(config, run=run, merge=base.merge)))


def _write_hyperparameters(study: Study, records: Sequence[Record], metric: str) -> None:
    """STUDY/tensorboard/TRIAL: a row in the tab HPARAMS with what the search chose, and the validation curve."""
    shutil.rmtree(study.folder / CURVES, ignore_errors=True)
    for record in records:
        with contextlib.closing(EventFile(study.folder / CURVES / f"{record.number:04d}", kept_step=None)) as events:
            values = {k: v if type(v) in (int, float) else str(v) for k, v in mask_all(dict(record.values)).items()}
            names = (f"best/{metric}", "steps")
            events.hyperparameters({**values, "state": record.state}, first=list(values), metrics=names)
            for step, value in sorted(record.validations.items()):
                events.scalars(step, {f"validation/{metric}": value})
            found = {} if record.value is None else {f"best/{metric}": record.value}
            events.scalars(record.steps, {**found, "steps": float(record.steps)})


def _markdown(
    heading: str, sections: Sequence[Section], drawn: Sequence[tuple[str, Path]], command: str, folder: Path
) -> str:
    parts = [f"# {heading}"]
    for place, (title, (first, *others), heads, rows) in enumerate(sections):
        parts += [f"## {title}" if title else f"**{first}**", *([first] if title else []), *others]
        parts += [table(heads, rows)] if rows else []
        if not place:
            parts += [f"![{caption}]({path.relative_to(folder)})" for caption, path in drawn]
    parts += ["## Reproduction", f"    {command}", f"[{BEST}]({BEST}) is the complete recipe."]
    parts.append(f"In TensorBoard, the tab HPARAMS shows the trials: `tensorboard --logdir {folder / CURVES}`")
    return "\n\n".join(parts) + "\n"


def _page(
    heading: str, sections: Sequence[Section], drawn: Sequence[tuple[str, Path]], command: str, recipe: str
) -> str:
    """One file that needs nothing else, and runs no code."""
    css = resources.files("eval.report").joinpath("page.css").read_text(encoding="utf-8")
    parts = [f"<h1>{html.escape(heading)}</h1>"]
    for place, (title, paragraphs, heads, rows) in enumerate(sections):
        parts += [f"<h2>{html.escape(title)}</h2>"] * bool(title)
        parts += [f"<p>{html.escape(text)}</p>" for text in paragraphs]
        if rows:
            parts.append(f'<div class="wide"><table><tr>{_cells("th", heads)}</tr>')
            parts += [f"<tr>{_cells('td', row)}</tr>" for row in rows]
            parts.append("</table></div>")
        if not place:
            for caption, path in drawn:
                image = base64.b64encode(path.read_bytes()).decode()
                parts.append(f'<p><img alt="{html.escape(caption)}" src="data:image/png;base64,{image}"></p>')
                parts.append(f'<p class="small">{html.escape(caption)}</p>')
    parts.append(f"<h2>Reproduction</h2><p><code>{html.escape(command)}</code></p>")
    parts.append(f"<details><summary>{BEST}</summary><pre>{html.escape(recipe)}</pre></details>")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(heading)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{css} img {{ max-width: 100%; }} td:last-child {{ min-width: 12rem; }}</style>"
        f"</head><body><main>\n{body}\n</main></body></html>\n"
    )


def _cells(tag: str, texts: Sequence[str]) -> str:
    shown = (
        f"<strong>{text.strip('*')}</strong>" if isinstance(text, Markup) else BREAKS.sub(r"\1<wbr>", html.escape(text))
        for text in texts
    )
    return "".join(f"<{tag}>{text}</{tag}>" for text in shown)
