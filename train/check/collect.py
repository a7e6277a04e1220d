"""Runs all checks of the rows, and joins what they found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from train.check import duplicates, packing, tokens
from train.check.findings import KINDS, SHOWN, Finding, Language, Report, SourceFacts
from train.check.limits import exceeded, unchecked
from train.check.load import Loaded, SourceRows, load
from train.check.rendered import rendered
from train.check.texts import FLAGS, Texts, scan, texts_of
from train.config import Config
from train.data.proof import Proof, first_windows
from train.data.sources import find
from train.data.tokenize import Settings, read_row
from zerotune.common.console import say
from zerotune.data.raw_row import Row

SHOWN_CHARACTERS, UNKNOWN_ROWS = 20, 200  # characters that are listed, and rows that are searched for them
COMPARED_ROWS = 200  # of a source, with requests of evaluation


def check(config: Config, most_rows: int, most_rendered: int = 1) -> Report:
    """Check all rows of a recipe; of a stream the first `most_rows`. most_rendered: rows of each source to show.

    Raises UserError if the rows cannot be loaded.
    """
    started = time.monotonic()
    say("reading and tokenising the data")
    loaded = load(config, most_rows)
    say("reading the texts")
    texts = {name: _texts(rows, loaded) for name, rows in by_source(loaded).items()}
    say("comparing the rows")
    proved = _proofs(loaded)
    found = [*tokens.findings(loaded), *duplicates.findings(loaded), *_of_texts(loaded, texts)]
    found += [Finding("template", proof.source, proof.wrong, proof.rows, proof.different) for proof in proved]
    found.sort(key=lambda finding: [*KINDS].index(finding.kind))
    languages, asked = _languages(loaded, texts)
    return Report(
        objective=config.objective,
        model=config.model.name,
        max_length=config.data.max_length_tokens,
        sources=[_facts(rows, loaded, texts) for rows in loaded.sources],
        findings=found,
        lengths=tokens.lengths(loaded),
        packing=packing.packing(loaded),
        languages=languages,
        language_rows=asked,
        classes=tokens.classes(loaded),
        values=tokens.values(loaded),
        pairs=tokens.pairs(loaded),
        unknown_characters=_unknown_characters(loaded),
        proofs=proved,
        rendered=rendered(loaded, most_rendered),
        exceeded=exceeded(found, config.check),
        notes=[*_notes(loaded, proved), *unchecked(found, config.check)],
        seconds=round(time.monotonic() - started, 1),
    )


def by_source(loaded: Loaded) -> dict[str, list[SourceRows]]:
    """Recipe key -> its rows, of one split or of both."""
    found: dict[str, list[SourceRows]] = {}
    for rows in loaded.sources:
        found.setdefault(rows.spec.key, []).append(rows)
    return found


def _texts(rows: Sequence[SourceRows], loaded: Loaded) -> Texts:
    spec, data = rows[0].spec, loaded.config.data
    number_n = np.concatenate([own.column("number_n") for own in rows])
    return scan(find(spec.config, spec.key, data.streaming), spec.settings, number_n, data.workers)


def _of_texts(loaded: Loaded, texts: dict[str, Texts]) -> list[Finding]:
    found = []
    for rows in loaded.sources:
        own = texts[rows.spec.key]
        numbers_n, first_n = rows.column("number_n"), rows.first_n
        for kind, flag in FLAGS.items():
            hit_n = first_n & np.isin(numbers_n, own.number_n[(own.flags_n & flag) != 0])
            found.append(Finding(kind, rows.name, int(hit_n.sum()), int(first_n.sum()), rows.places(hit_n, SHOWN)))
    return found


def _facts(rows: SourceRows, loaded: Loaded, texts: dict[str, Texts]) -> SourceFacts:
    lengths_n, numbers_n = rows.column("lengths_n"), rows.column("number_n")
    own, count = texts[rows.spec.key], int(lengths_n.sum(dtype=np.int64))
    size = int(own.bytes_n[np.isin(own.number_n, numbers_n)].sum())
    tokenizer, stats = loaded.tokenizer, rows.stats
    return SourceFacts(
        name=rows.name,
        path=rows.spec.config.path,
        format=rows.spec.config.format,
        is_training=rows.is_training,
        rows=int(rows.first_n.sum()),
        pieces=len(rows),
        tokens=count,
        learned=int(rows.column("learned_n").sum(dtype=np.int64)),
        longest=int(lengths_n.max(initial=0)),
        tokens_per_byte=round(count / max(size, 1), 4),
        left_out=dict(stats.left_out.most_common()) if stats else {},
        ends=[tokenizer.convert_ids_to_tokens(token) for token in sorted(stats.ends)] if stats else [],
    )


def _proofs(loaded: Loaded) -> list[Proof]:
    """For each source, rows compared with the requests of evaluation."""
    if getattr(loaded.config.settings, "task", None):
        return []  # an evaluation task makes the prompts of the run
    return [
        proof
        for rows in loaded.sources
        if (proof := loaded.inference.proof(
            rows.name, rows.spec.config, first_windows(rows.parts, COMPARED_ROWS, spread=True)
        )).rows
    ]  # fmt: skip


def _languages(loaded: Loaded, texts: dict[str, Texts]) -> tuple[list[Language], int]:
    """(languages of the training rows, how many rows were asked)."""
    rows, tokens_of, bytes_of = Counter[str](), Counter[str](), Counter[str]()
    for source in loaded.of(True):
        own = texts[source.spec.key]
        numbers_n, inverse = np.unique(source.column("number_n"), return_inverse=True)
        counts_n = np.bincount(inverse, source.column("lengths_n"))
        place_of = dict(zip(numbers_n.tolist(), counts_n.tolist(), strict=True))
        for number, size, name in zip(own.number_n.tolist(), own.bytes_n.tolist(), own.languages, strict=True):
            if name and number in place_of:
                rows[name] += 1
                tokens_of[name] += int(place_of[number])
                bytes_of[name] += size
    total = rows.total()
    return [
        Language(name, count, count / total, round(tokens_of[name] / max(bytes_of[name], 1), 4))
        for name, count in rows.most_common()
    ], total


def _unknown_characters(loaded: Loaded) -> dict[str, int]:
    """What became the unknown token in the first such rows of each source, the most frequent first."""
    unknown = tokens.unknown_id(loaded)
    if unknown is None:
        return {}
    found: Counter[str] = Counter()
    for rows in loaded.sources:
        hit_n = tokens.per_row(rows, tokens.count_of(unknown)) > 0
        numbers = set(rows.column("number_n")[hit_n][:UNKNOWN_ROWS].tolist())
        source = find(rows.spec.config, rows.spec.key, loaded.config.data.streaming)
        for row in source.rows() if numbers else ():
            if row.number > max(numbers):
                break
            if row.number in numbers and isinstance(row.item, Row):
                found.update(_unknown_in(row.item, rows.spec.settings, loaded, unknown))
    return dict(found.most_common(SHOWN_CHARACTERS))


def _unknown_in(row: Row, settings: Settings, loaded: Loaded, unknown: int) -> list[str]:
    texts = texts_of(read_row(row, settings.format, settings.columns, None, settings.label_spec.asks))
    encoded = [loaded.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return [
        text[start:end]
        for text, encoding in zip(texts, encoded, strict=True)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        if token == unknown
    ]


def _notes(loaded: Loaded, proved: Sequence[Proof]) -> list[str]:
    """What the reader must know of the check itself."""
    lines = list(loaded.lines)
    if loaded.cut:
        rows = sum(len(rows) for rows in loaded.of(True))
        lines.append(f"only the first {rows:,} rows of the stream are checked; more: --rows N")
    if not loaded.of(False):
        lines.append("no validation data: overlap with it is not checked")
    lines += [
        f"{rows.name}: no row is compared with evaluation: all may be truncated, or have no request there"
        for rows in loaded.sources
        if len(rows) and rows.name not in {proof.source for proof in proved}
    ]
    if tokens.unknown_id(loaded) is None:
        lines.append("the tokenizer has no unknown token")
    return lines
