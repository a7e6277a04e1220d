"""What the token tables of a source say: bad and truncated rows, ends, unknown tokens, lengths, labels.

Shape suffixes: n rows, k tokens of several rows one after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from train.check.findings import SHOWN, Classes, Finding, LengthBin, Pairs, Values
from train.check.load import Loaded, SourceRows
from train.data.token_dataset import Part
from zerotune.data.formats import known_as

PerRow = Callable[[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint8]], NDArray[np.int64]]


def per_row(rows: SourceRows, compute: PerRow) -> NDArray[np.int64]:
    """A number for each row. compute: (starts_n, ids_k, learned_k) -> value_n, of a batch of rows."""
    return np.concatenate([np.empty(0, np.int64), *(_of_part(part, compute) for part in rows.parts)])


def _of_part(part: Part, compute: PerRow) -> NDArray[np.int64]:
    batches = []
    for (offsets, ids_k), learned_k in part.table.lists:
        start, end = int(offsets[0]), int(offsets[-1])
        batches.append(compute(offsets[:-1] - start, ids_k[start:end], learned_k[start:end]))
    values_n = np.concatenate([np.empty(0, np.int64), *batches])
    return values_n if part.chosen is None else values_n[part.chosen]


def last_learned(
    starts_n: NDArray[np.int64], ids_k: NDArray[np.int32], learned_k: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """The last learned token of each row, -1 where nothing is learned."""
    places_k = np.where(learned_k != 0, np.arange(len(ids_k)), -1)
    last_n = np.maximum.reduceat(places_k, starts_n) if len(starts_n) else np.empty(0, np.int64)
    return np.where(last_n >= 0, ids_k[last_n], -1).astype(np.int64)


def count_of(token: int) -> PerRow:
    """The number of tokens `token` in each row."""

    def count(starts_n: NDArray[np.int64], ids_k: NDArray[np.int32], _: NDArray[np.uint8]) -> NDArray[np.int64]:
        return np.add.reduceat(ids_k == token, starts_n, dtype=np.int64) if len(starts_n) else np.empty(0, np.int64)

    return count


def unknown_id(loaded: Loaded) -> int | None:
    """The token that stands for what the tokenizer does not know; None if it has none."""
    name = getattr(loaded.tokenizer.backend_tokenizer.model, "unk_token", None) or loaded.tokenizer.unk_token
    found = loaded.tokenizer.get_vocab().get(name)
    return None if found == loaded.tokenizer.eos_token_id else found  # GPT-2 and others name their end token


def findings(loaded: Loaded) -> Iterator[Finding]:
    """What is wrong with single rows, by source."""
    unknown = unknown_id(loaded)
    for rows in loaded.sources:
        yield from _bad(rows)
        yield from _unfinished(rows, loaded)
        if unknown is not None:
            counts_n = per_row(rows, count_of(unknown))
            yield _finding("unknown", rows, _whole(rows, counts_n > 0))


def _bad(rows: SourceRows) -> Iterator[Finding]:
    if rows.stats is None:
        return
    problems, names = rows.stats.problems, rows.parts[0].names
    listed = [replace(bad, file=names[file]) for file, bad in problems.first]
    for kind, is_meant in (
        ("bad", lambda reason: True),
        ("empty", lambda reason: "is empty" in reason or "empty list" in reason),
        ("fully_masked", lambda reason: reason.startswith("nothing ")),
    ):
        count = sum(count for reason, count in problems.kinds.items() if is_meant(reason))
        yield Finding(
            kind, rows.name, count, problems.rows, [str(bad) for bad in listed if is_meant(bad.reason)][:SHOWN]
        )
    yield Finding("other_prompt", rows.name, rows.stats.asked_otherwise, problems.rows - problems.count)


def _unfinished(rows: SourceRows, loaded: Loaded) -> Iterator[Finding]:
    """Rows that are truncated, and those that do not learn to stop."""
    if rows.stats is None or loaded.label_spec.has_labels:
        return
    is_text = known_as(rows.spec.config.format) == "text"
    used = rows.stats.problems.rows - rows.stats.problems.count
    is_long_n = rows.column("lengths_n") == rows.spec.settings.max_length
    if not is_text:
        places = rows.places(is_long_n, SHOWN) if rows.stats.cut else []
        yield Finding("truncated", rows.name, rows.stats.cut, used, places)
    last_n, numbers_n = per_row(rows, last_learned), rows.column("number_n")
    is_last_n = np.append(numbers_n[1:] != numbers_n[:-1], True)  # the windows of a text end with its last one
    marks_n = np.array(sorted(rows.spec.settings.marks), np.int64)
    yield _finding("no_end", rows, is_last_n & (last_n >= 0) & ~np.isin(last_n, marks_n))


def _whole(rows: SourceRows, is_found_n: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask of the first windows of the source rows of which any window is found."""
    first_n = rows.first_n
    starts_n = np.flatnonzero(first_n)
    mask_n = np.zeros(len(first_n), np.bool_)
    mask_n[starts_n] = np.logical_or.reduceat(is_found_n, starts_n)
    return mask_n


def _finding(kind: str, rows: SourceRows, is_found_n: NDArray[np.bool_]) -> Finding:
    return Finding(kind, rows.name, int(is_found_n.sum()), int(rows.first_n.sum()), rows.places(is_found_n, SHOWN))


def lengths(loaded: Loaded) -> list[LengthBin]:
    """A histogram by powers of two, as rows are trained: truncated, long texts in several rows."""
    split = [_lengths(loaded.of(is_training)) for is_training in (True, False)]
    longest = max((int(lengths_n.max(initial=1)) for lengths_n in split), default=1)
    edges = [1, *(2**k for k in range(3, max(longest.bit_length(), 3) + 1))]
    counts = [np.histogram(lengths_n, edges)[0] for lengths_n in split]
    bins = [
        LengthBin(low, min(high - 1, longest), int(train), int(held))
        for low, high, train, held in zip(edges[:-1], edges[1:], *counts, strict=True)
    ]
    filled = [k for k, entry in enumerate(bins) if entry.train or entry.validation]
    return bins[filled[0] : filled[-1] + 1] if filled else []


def _lengths(sources: Sequence[SourceRows]) -> NDArray[np.int32]:
    return np.concatenate([np.empty(0, np.int32), *(rows.column("lengths_n") for rows in sources)])


def classes(loaded: Loaded) -> list[Classes]:
    """How often each label occurs at the label positions of a source."""
    found = []
    for rows in loaded.sources if loaded.label_spec.labels_as == "classes" else ():
        counts: Counter[str] = Counter()
        for part in rows.parts:
            names = part.table.manifest["labels"]
            numbers_n = np.concatenate(
                [np.empty(0), *(part.table.label_values(part.where(k)) for k in range(len(part)))]
            )
            counts.update(
                dict(zip(names, np.bincount(numbers_n.astype(np.int64), minlength=len(names)).tolist(), strict=True))
            )
        found.append(Classes(rows.name, dict(counts.most_common())))
    return found


def values(loaded: Loaded) -> list[Values]:
    """Labels that are values, or the numbers in texts."""
    spec = loaded.label_spec
    is_asked = spec.numbers or (spec.labels_as == "values" and not spec.is_of_pairs)
    found = []
    for rows in loaded.sources if is_asked else ():
        value_n = np.concatenate(
            [np.empty(0), *(part.table.label_values(part.where(k)) for part in rows.parts for k in range(len(part)))]
        )
        if len(value_n):
            low, middle, high = (float(value) for value in np.quantile(value_n, [0, 0.5, 1]))
            found.append(Values(rows.name, len(value_n), low, middle, high, int((value_n == 0).sum())))
    return found


def pairs(loaded: Loaded) -> list[Pairs]:
    """How often the chosen side of a pair is the longer one: a reward model learns that too."""
    found = []
    for rows in loaded.sources if loaded.label_spec.is_of_pairs else ():
        lengths_n = rows.column("lengths_n").astype(np.int64)
        chosen_n = per_row(rows, lambda starts_n, _, learned_k: _first_learned(starts_n, learned_k) + 1)
        longer = float((2 * chosen_n > lengths_n).mean()) if len(rows) else 0.0
        found.append(Pairs(rows.name, len(rows), longer))
    return found


def _first_learned(starts_n: NDArray[np.int64], learned_k: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The place in its row of the first label position."""
    places_k = np.where(learned_k != 0, np.arange(len(learned_k)), len(learned_k))
    return (np.minimum.reduceat(places_k, starts_n) - starts_n) if len(starts_n) else np.empty(0, np.int64)
