"""The token tables of a list of sources: written once by the first rank, then memory-mapped by all ranks."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
import transformers

from train.config import DataConfig
from train.data.rank_sync import from_first, together
from train.data.rows import bad_rows_error, check_columns, sampled, skipped_line
from train.data.setup import Spec
from train.data.sources import NumberedRow, Source, find, options_of
from train.data.token_dataset import Part
from train.data.token_table import TableWriter, TokenTable, cache_root, folder_of, is_whole, manifest, obtain
from train.data.tokenize_workers import TableStats, Workers, write_table
from train.protocols import Ranks
from zerotune.common.console import counted
from zerotune.common.errors import UserError
from zerotune.data.formats import describe_left_out, known_as

ENCODER_VERSION = 4  # raise it when the same rows and settings give another table


@dataclass(frozen=True)
class Entry:
    """A source's entry in the cache. names: of its files. is_new: whether it was tokenised just now."""

    key: str
    names: list[str]
    is_new: bool


def load_parts(specs: Sequence[Spec], config: DataConfig, seed: int, ranks: Ranks) -> tuple[list[Part], list[str]]:
    """(a part for each source, lines for the user). Each source is tokenised at most once per file system.

    Raises:
        UserError: On every rank, even if only one rank found the error.
    """
    if not specs:
        return [], []
    entries = [Entry(**e) for e in from_first(ranks, lambda: [vars(e) for e in _ensure(specs, config, seed)])]
    root = cache_root(config)

    def open_tables() -> list[TokenTable]:
        folders = [folder_of(root, entry.key) for entry in entries]
        are_here = all(is_whole(folder, thorough=False) for folder in folders)
        # A node with its own cache has to tokenise.
        if not are_here and [e.key for e in _ensure(specs, config, seed)] != [e.key for e in entries]:
            raise UserError(
                "data.train: the files on this node differ from the first node's; put the same files on every node"
            )
        return [TokenTable(folder) for folder in folders]

    tables = together(ranks, open_tables)
    parts = [Part(t, spec.number, entry.names) for t, spec, entry in zip(tables, specs, entries, strict=True)]
    lines = [
        line for part, spec, entry in zip(parts, specs, entries, strict=True) for line in _lines(part, spec, entry)
    ]
    return parts, lines


def _ensure(specs: Sequence[Spec], config: DataConfig, seed: int) -> list[Entry]:
    strict = config.on_bad_row == "error"
    entries, found = [], []
    with contextlib.closing(Workers([spec.settings for spec in specs], config.workers)) as workers:
        for number, spec in enumerate(specs):
            source = find(spec.config, spec.key)
            key = entry_key(source.identity(), spec, seed)
            rows = sampled(source.rows(), spec.config.fraction, seed, "fraction")
            is_new, stats = encode_table(source, rows, key, number, config, workers, with_bar=True)
            if not strict or not stats.problems.rows:
                _check_filled(source, stats)
            entries.append(Entry(key, source.names, is_new))
            found.append((source, stats.problems))
            if stats.problems.is_partial:
                break
    if strict and any(problems.count for _, problems in found):
        raise bad_rows_error(found)
    return entries


def encode_table(
    source: Source,
    rows: Iterable[NumberedRow],
    key: str,
    settings: int,
    config: DataConfig,
    workers: Workers,
    with_bar: bool = False,
) -> tuple[bool, TableStats]:
    """Make sure that the cache has the table of these rows. Returns (whether it was built, statistics of the rows).

    rows are read only to build it. With on_bad_row: error, a table with bad rows is not kept.
    """
    strict = config.on_bad_row == "error"
    found: list[TableStats] = []

    def fill(writer: TableWriter) -> dict[str, Any] | None:
        stats = write_table(rows, settings, workers, writer, strict, source if with_bar else None)
        check_columns(source, stats.problems)
        found.append(stats)
        return None if strict and stats.problems.count else stats.to_json()

    root = cache_root(config)
    is_new = obtain(root, key, fill)
    return is_new, found[0] if found else TableStats.from_json(manifest(folder_of(root, key)))


def _check_filled(source: Source, stats: TableStats) -> None:
    if stats.problems.count == stats.problems.rows:
        left = f"; {skipped_line(stats.problems, source.names)}" if stats.problems.count else ""
        if source.config.fraction < 1:
            left += f"; {source.key}.fraction ({source.config.fraction:g}) may be too small for so few rows"
        raise UserError(f"{source.key} ({source.config.path}): there is no row to learn from{left}")


def entry_key(content: Sequence[str], spec: Spec, seed: int, **more: Any) -> str:
    """The cache key: a digest of everything that determines the tokens in the table and their order."""
    fraction = spec.config.fraction
    parts = {
        "version": ENCODER_VERSION,
        "libraries": [tokenizers.__version__, transformers.__version__],
        "content": list(content),
        "fraction": None if fraction == 1 else [fraction, seed],
        "settings": spec.settings.identity(),
        **(
            {"read": read} if (read := options_of(spec.config).identity()) else {}
        ),  # absent if empty: older tables stay valid
        **more,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _lines(part: Part, spec: Spec, entry: Entry) -> list[str]:
    stats, counts = TableStats.from_json(part.table.manifest), part.table.manifest
    used = stats.problems.rows - stats.problems.count
    sampled_text = "" if spec.config.fraction == 1 else f" ({spec.config.fraction:.0%} drawn with the seed)"
    chosen = {name: value if isinstance(value, list) else [value] for name, value in spec.config.filter.items()}
    meant = " and ".join(f"{column} is {' or '.join(map(str, values))}" for column, values in chosen.items())
    where = f" where {meant}" if meant else ""
    head = (
        f"{spec.key} {spec.config.path} ({spec.config.format}): {counted(used, 'row')}{where}{sampled_text},"
        f" {counts['tokens']:,} tokens, {counts['learned'] / max(counts['tokens'], 1):.0%} of them learned"
        f" ({'tokenised' if entry.is_new else 'from the cache'})"
    )
    return [head, *(f"{spec.key}: {note}" for note in notes(stats, spec, entry.names))]


def notes(stats: TableStats, spec: Spec, names: Sequence[str]) -> list[str]:
    """Further lines for the user about a source's rows."""
    lines = []
    if stats.problems.count:
        lines.append(skipped_line(stats.problems, names))
    if stats.cut:
        one = stats.cut == 1
        continues = "continues in further rows" if one else "continue in further rows"
        is_cut = "row is truncated" if one else "rows are truncated"
        long = {"text": f"text{'s' * (not one)} {continues}", "tagged": f"sentence{'s' * (not one)} {continues}"}
        what = long.get(known_as(spec.config.format), is_cut)
        lines.append(f"{stats.cut:,} {what} at data.max_length_tokens ({spec.settings.max_length})")
    if stats.loose:
        lines.append(
            f"{stats.loose:,} entities begin with I- or E- (IOB1, or invalid IOB2): the tags are learned unchanged, and"
            " each of these begins an entity, as in conlleval and seqeval"
        )
    lines += describe_left_out(stats.left_out, spec.config.filter)
    if stats.endless:
        lines.append(
            f"WARNING: {stats.endless:,} answers do not end with a special token, so the model does not learn to stop:"
            " the chat template ends the assistant's turn without one; use chatml or plain"
        )
    if stats.asked_otherwise:
        lines.append(
            f"WARNING: {stats.asked_otherwise:,} last answers follow another prompt than the tokenizer's template"
            " writes, probably because only one of the two has reasoning (<think>): docs/chat-templates.md"
        )
    return lines
