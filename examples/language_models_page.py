"""The page of examples/language_models.py: sizes and budgets, curves, perplexities, word shift, continuations."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eval.compare import compare
from eval.names import file_names
from eval.protocols import Sample
from eval.report import words
from eval.result import MetricResult
from eval.tasks import perplexity
from train.report.compare import Column, columns
from train.report.run import Run, read_run
from zerotune.common.console import counted, duration
from zerotune.common.metric_format import percent, plain

FAMILIES = ("rnn", "lstm", "transformer")
VALUES = ("nll", "tokens", "words", "bytes", "unknown", "unknown_nll", "sentence_perplexity")
SHOWN_WORDS = 15
BOX = {"whis": (5, 95), "showfliers": False, "patch_artist": True, "widths": 0.5}

Rows = Sequence[Mapping[str, Any]]  # of samples/perplexity.MODEL.jsonl: one for each of the text


@dataclass(frozen=True)
class Text:
    """One of the two texts. metrics: of the families in `order`, the best first, which the others are compared with.

    unknown: family -> share of <unk>; empty where no token is. known: family -> perplexity of the other tokens, the
    lowest first.
    trained_on: rows that share a passage with the training data.
    """

    name: str
    rows: int
    trained_on: int
    order: Sequence[str]
    metrics: Mapping[str, MetricResult]
    unknown: Mapping[str, str]
    known: Mapping[str, float]

    def value(self, metric: str, place: int) -> str:
        """A metric of the family at this place of the order, with its interval."""
        found = self.metrics[metric]
        return words.with_interval(found, found.estimates[place])

    def table(self) -> list[tuple[str, list[str]]]:
        """(name, a cell for each family in the order)."""
        places = range(len(self.order))
        known = {"share of <unk>": self.unknown, "without <unk>": {f: plain(self.known[f]) for f in self.order}}
        return [
            ("perplexity", [self.value("perplexity", place) for place in places]),
            (f"against {self.order[0]}", [self.against_best(place) for place in places]),
            *((name, [cells[family] for family in self.order]) for name, cells in known.items() if self.unknown),
            ("mean over rows", [self.value("sentence_perplexity", place) for place in places]),
            ("bits per byte", [self.value("bits_per_byte", place) for place in places]),
        ]

    def against_best(self, place: int) -> str:
        """How much higher the perplexity is than the best family's, and whether that is more than chance."""
        if not place:
            return ""
        found = self.metrics["perplexity"].differences[place - 1]
        p = f", p {words.probability(found.p_value)}" if found.p_value is not None else f", {found.reason}"
        return words.change_with_interval(self.metrics["perplexity"], found) + p


def page(out: Path, paths: Sequence[Path]) -> str:
    """The content of index.html. paths: the text inside the domain, and that outside."""
    runs = [read_run(best_trial(out / f"search-{family}")) for family in FAMILIES]
    result = json.loads((out / "eval/result.json").read_text(encoding="utf-8"))
    rows = {
        task: {f: _lines(out / f"eval/samples/{task}.{_file_name(model['name'])}.jsonl") for f, model in
               zip(FAMILIES, result["models"], strict=True)}
        for task in ("perplexity", "samples")
    }  # fmt: skip
    texts = [_text(path, name, rows["perplexity"], result["tasks"][0]) for path, name in _named(paths)]
    shift = next(table for table in result["tasks"][0]["tables"][result["models"][0]["name"]] if table["of_data"])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals.update(percent=percent, plain=plain)
    return environment.get_template("language_models.html.jinja").render(
        columns=[*_sizes(runs, out), *(c for c in columns(runs)[1:] if c.head != "model.family")],
        families=FAMILIES,
        curves=_embedded(curves(runs)),
        texts=texts,
        boxes=_embedded(boxes(rows["perplexity"], [text.name for text in texts])),
        shift=shift | {"rows": shift["rows"][:SHOWN_WORDS]},
        shift_figure=base64.b64encode((out / "eval/words-1.png").read_bytes()).decode(),
        samples={family: own[0] for family, own in rows["samples"].items()},
        searches=[(family, f"search-{family}/report.html") for family in FAMILIES],
        evaluation=(out / "eval/report.html").read_text(encoding="utf-8"),
    )


def best_trial(study: Path) -> Path:
    """The run of the best trial that trained to its end."""
    ends = {path.parent: json.loads(path.read_text(encoding="utf-8")) for path in study.glob("trials/*/trial.json")}
    complete = {run: end["value"] for run, end in sorted(ends.items()) if end["state"] == "complete"}
    return min(complete, key=complete.__getitem__)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _file_name(model: str) -> str:
    """As in eval.report."""
    return re.sub(r"[^\w.-]+", "-", model)


def _named(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    return list(zip(paths, file_names([str(path) for path in paths]), strict=True))


def _sizes(runs: Sequence[Run], out: Path) -> list[Column]:
    """What each family is, and what it has cost."""
    trials = [[read_run(path.parent) for path in out.glob(f"search-{f}/trials/*/metrics.jsonl")] for f in FAMILIES]
    configs = [json.loads((run.folder / "base/config.json").read_text(encoding="utf-8")) for run in runs]
    return [
        Column("model", FAMILIES, is_number=False),
        Column("parameters", [f"{run.run_info['parameters']['total']:,}" for run in runs]),
        Column("vocabulary", [f"{config['vocab_size']:,}" for config in configs]),
        Column("training tokens", [f"{run.last('train/tokens') or 0:,.0f}" for run in runs]),
        Column("search", [f"{counted(len(own), 'trial')}, {duration(sum(t.seconds for t in own))}" for own in trials]),
    ]


def _text(path: Path, name: str, rows: Mapping[str, Rows], task: Mapping[str, Any]) -> Text:
    own = {family: [row for row in all_rows if row["corpus"] == name] for family, all_rows in rows.items()}
    samples = {
        family: [Sample(row["id"], {key: row[key] for key in VALUES}) for row in lines] for family, lines in own.items()
    }
    order = sorted(FAMILIES, key=lambda family: _ratio(own[family], "nll", "tokens"))
    found = {m.name: m for m in compare(perplexity.TASK.metrics, {family: samples[family] for family in order})}
    passages = {overlap["id"] for overlap in (task["contamination"] or {"found": []})["found"]}
    shares = {family: _ratio(lines, "unknown", "tokens") for family, lines in own.items()}
    ids = [row["id"] for row in own[FAMILIES[0]]]
    return Text(
        name, len(ids), len(passages & set(ids)), order, found,
        {family: percent(share) for family, share in shares.items()} if any(shares.values()) else {},
        dict(sorted(((family, _known(lines)) for family, lines in own.items()), key=lambda pair: pair[1])),
    )  # fmt: skip


def _ratio(rows: Rows, top: str, bottom: str) -> float:
    return float(sum(row[top] for row in rows) / sum(row[bottom] for row in rows))


def _known(rows: Rows) -> float:
    """Perplexity of the tokens that are not <unk>; 1 where there are none."""
    nll = sum(row["nll"] - row["unknown_nll"] for row in rows)
    tokens = sum(row["tokens"] - row["unknown"] for row in rows)
    return perplexity.perplexity_of(nll / max(tokens, 1))


def curves(runs: Sequence[Run]) -> Figure:
    """The loss of all runs in one figure: faint in training, with dots on held-out rows."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number, one in enumerate(runs):
        training, held_out = one.curve("train/loss"), one.curve("validation/loss")
        axes.plot(list(training), list(training.values()), color=f"C{number}", alpha=0.3)
        axes.plot(list(held_out), list(held_out.values()), "o-", color=f"C{number}", label=FAMILIES[number])
    axes.set(xlabel="optimizer step", ylabel="loss, nats per token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def boxes(rows: Mapping[str, Rows], texts: Sequence[str]) -> Figure:
    """How the perplexities of rows are spread: median, quartiles, and 5 to 95 % of them."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, text, colour in zip(figure.subplots(1, 2, sharey=True), texts, ("#8a8f98", "#2b6cb0"), strict=True):
        values = [[r["sentence_perplexity"] for r in rows[f] if r["corpus"] == text] for f in FAMILIES]
        drawn = axes.boxplot(values, tick_labels=FAMILIES, medianprops={"color": "black"}, **BOX)
        for box in drawn["boxes"]:
            box.set(facecolor=colour, alpha=0.5)
        axes.set(title=text, yscale="log")
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].set_ylabel("perplexity of a row")
    return figure


def _embedded(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return base64.b64encode(file.getvalue()).decode()
