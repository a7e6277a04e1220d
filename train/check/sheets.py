"""A report as tables of texts, for the terminal and for Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from train.check.findings import KINDS, LengthBin, Report
from zerotune.common.console import counted
from zerotune.common.metric_format import percent, plain

BAR = 24  # characters of the longest bar
MOST_CLASSES = 20


@dataclass(frozen=True)
class Sheet:
    """One table. right: heads of columns that are numbers. below: lines under it."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    right: tuple[str, ...] = ()
    below: tuple[str, ...] = ()


def sheets(report: Report) -> list[Sheet]:
    """The tables of a report that have rows."""
    made = [_sources(report), _findings(report), _lengths(report), _packing(report), *_labels(report)]
    made += [_languages(report), _characters(report), _proofs(report)]
    return [sheet for sheet in made if sheet.rows]


def _sources(report: Report) -> Sheet:
    rows = [
        [s.name, s.format, f"{s.rows:,}", f"{s.tokens:,}", f"{s.learned / max(s.tokens, 1):.1%}", f"{s.longest:,}",
         f"{s.tokens_per_byte:.3f}"]
        for s in report.sources
    ]  # fmt: skip
    below = [f"{s.name}: {s.path}" for s in report.sources]
    below += [
        f"{s.name}: parts of rows that are not used: "
        + ", ".join(f"{what} ({count:,})" for what, count in list(s.left_out.items())[:5])
        for s in report.sources if s.left_out
    ]  # fmt: skip
    ends = sorted({end for s in report.sources for end in s.ends})
    below += [f"turns and texts end with {', '.join(ends)}"] if ends else []
    right = ("rows", "tokens", "learned", "longest", "tokens/byte")
    return Sheet("Rows", ["source", "format", *right], rows, right, tuple(below))


def _findings(report: Report) -> Sheet:
    rows = [
        [f.kind.replace("_", " "), KINDS[f.kind], f.source, f"{f.count:,}", percent(f.share)]
        for f in report.findings if f.count
    ]  # fmt: skip
    below = [f"{f.kind.replace('_', ' ')}, {f.source}: {'; '.join(f.examples)}" for f in report.findings if f.examples]
    seen = {f.kind for f in report.findings} - {f.kind for f in report.findings if f.count}
    none = [kind.replace("_", " ") for kind in KINDS if kind in seen]
    below += [f"none of: {', '.join(none)}"] if none else []
    heads = ["finding", "rows that are or have this", "source", "rows", "share"]
    return Sheet("Findings", heads, rows or [["nothing", "", "", "", ""]], ("rows", "share"), tuple(below))


def _lengths(report: Report) -> Sheet:
    total = [sum(b.train for b in report.lengths), sum(b.validation for b in report.lengths)]
    most = max((max(b.train / max(total[0], 1), b.validation / max(total[1], 1)) for b in report.lengths), default=1.0)

    def row(entry: LengthBin) -> list[str]:
        share = entry.train / max(total[0], 1)
        bar = "█" * round(BAR * share / most) or ("▏" if entry.train else "")
        held = [f"{entry.validation:,}"] if total[1] else []
        return [f"{entry.low:,} to {entry.high:,}", f"{entry.train:,}", *held, f"{share:.1%}", bar]

    held = ["validation"] if total[1] else []
    below = (f"data.max_length_tokens is {report.max_length:,}; longer rows are truncated, long texts continued",)
    heads = ["tokens", "training", *held, "share", "of the training rows"]
    return Sheet("Lengths", heads, [row(entry) for entry in report.lengths], tuple(heads[1:-1]), below)


def _packing(report: Report) -> Sheet:
    rows = [[f"{p.length:,}", f"{p.fill:.1%}", f"{p.padding:.1%}", f"{p.longer:.1%}"] for p in report.packing]
    heads = ["tokens", "filled, packed", "padding, padded", "rows that are longer"]
    return Sheet("Packing by batch.tokens_per_micro_batch", heads, rows, tuple(heads))


def _labels(report: Report) -> list[Sheet]:
    made = []
    for own in report.classes:
        total, listed = sum(own.labels.values()), list(own.labels.items())
        rows = [[name, f"{count:,}", f"{count / max(total, 1):.1%}"] for name, count in listed[:MOST_CLASSES]]
        more = len(listed) - MOST_CLASSES
        below = (f"and {counted(more, 'class', 'classes')} more",) if more > 0 else ()
        made.append(Sheet(f"Classes of {own.source}", ["class", "count", "share"], rows, ("count", "share"), below))
    numbers = [
        [v.source, f"{v.count:,}", plain(v.low), plain(v.median), plain(v.high), f"{v.zeros:,}"] for v in report.values
    ]
    heads = ["source", "values", "least", "median", "greatest", "zeros"]
    made.append(Sheet("Values", heads, numbers, tuple(heads[1:])))
    pairs = [[p.source, f"{p.rows:,}", f"{p.longer:.1%}"] for p in report.pairs]
    made.append(Sheet("Pairs", ["source", "pairs", "chosen is longer"], pairs, ("pairs", "chosen is longer")))
    return made


def _languages(report: Report) -> Sheet:
    rows = [[e.name, f"{e.rows:,}", f"{e.share:.1%}", f"{e.tokens_per_byte:.3f}"] for e in report.languages[:15]]
    below = (
        f"guessed by py3langid from {counted(report.language_rows, 'training row')}; short: too few letters;"
        " unclear: code, tables, mixed or rare languages",
    )
    heads = ["language", "rows", "share", "tokens/byte"]
    return Sheet("Languages", heads, rows, tuple(heads[1:]), below)


def _characters(report: Report) -> Sheet:
    rows = [[text, f"{count:,}"] for text, count in report.unknown_characters.items()]
    return Sheet("Unknown to the tokenizer", ["characters", "count"], rows, ("count",))


def _proofs(report: Report) -> Sheet:
    rows = []
    for p in report.proofs:
        numbers = (p.rows, p.rows - p.wrong - p.earlier, p.earlier, p.tools, p.systems, p.thoughts)
        rows.append([p.source, *(f"{number:,}" for number in numbers)])
    below = ["same: tokens as evaluation asks them; answers are learned from their start to a stop token"]
    if any(p.earlier for p in report.proofs):
        below.append("earlier turns: the same from the last question on; the template writes earlier turns otherwise")
    heads = ["source", "compared", "same", "earlier turns", "tools", "system", "reasoning"]
    return Sheet("Training and inference", heads, rows, tuple(heads[1:]), tuple(below))
