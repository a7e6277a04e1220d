"""Finds samples that occur in the training data, and computes the metrics without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.compare import compare
from eval.ngram_overlap import Fields, Index, fields
from eval.protocols import Metric, Sample
from eval.result import Contamination, Overlap, TaskResult
from zerotune.common.console import counted
from zerotune.common.errors import UserError
from zerotune.common.files import json_object
from zerotune.data.file_options import DEFAULT, FileOptions, RowFilter
from zerotune.data.files import expand
from zerotune.data.labelled_lines import decoded
from zerotune.data.raw_row import BadRow, Row
from zerotune.data.readers import read
from zerotune.data.text_files import kind_of


@dataclass(frozen=True)
class TrainingData:
    """files: training files and how to read them. missing: why training data of a checkpoint cannot be read."""

    files: Mapping[Path, FileOptions]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Overlaps:
    """found: task -> its samples that occur in the training data. rows: training file -> number of rows read."""

    found: Mapping[str, Sequence[Overlap]]
    rows: Mapping[str, int]
    missing: Sequence[str]


def training_data(named: Sequence[str], checkpoints: Sequence[Path]) -> TrainingData:
    """The files named by the user and those in the checkpoints' run.json, each once.

    Raises UserError if a file named by the user is missing; other missing files are only reported.
    """
    files = {file.resolve(): (file, DEFAULT) for path in named for file in expand(path)}
    missing = []
    for checkpoint in checkpoints:
        for path, split, options in _training_sources(checkpoint / "run.json"):
            try:
                files |= {file.resolve(): (file, options) for file in expand(path, split=split)}
            except UserError as error:
                missing.append(str(error))
    return TrainingData(dict(files.values()), tuple(dict.fromkeys(missing)))


def find_overlaps(training: TrainingData, tasks: Mapping[str, Mapping[str, Fields]]) -> Overlaps:
    """Search the training data for samples. tasks: name -> id of a sample -> its texts."""
    index = Index([list(rows.values()) for rows in tasks.values()])
    scans = {str(file): _scan_file(index, file, options) for file, options in training.files.items()}
    counts = {file: count for file, (count, _) in scans.items()}
    missing = [*training.missing, *(reason for _, reasons in scans.values() for reason in reasons)]
    places = index.found()
    numbered = enumerate((task, sample) for task, rows in tasks.items() for sample in rows)
    found: dict[str, list[Overlap]] = {task: [] for task in tasks}
    for number, (task, sample) in numbered:
        if number in places:
            found[task].append(Overlap(sample, *places[number]))
    return Overlaps(found, counts, missing)


def texts_by_id(rows: Iterable[Row | BadRow], samples: Iterable[str]) -> dict[str, Fields]:
    """id (file:line) -> texts of the row, for the given sample ids in their order."""
    texts = {row.place: fields(row.value) for row in rows if isinstance(row, Row)}
    return {sample: texts[sample] for sample in samples if sample in texts}


def with_contamination(
    task: TaskResult, metrics: Sequence[Metric], samples: Mapping[str, Sequence[Sample]], overlaps: Overlaps
) -> TaskResult:
    """Add to a result the metrics over the samples that do not occur in the training data."""
    scored = {sample.id for sample in next(iter(samples.values()))}
    found = [overlap for overlap in overlaps.found[task.name] if overlap.id in scored]
    dirty = {overlap.id for overlap in found}
    clean = {
        model: [dataclasses.replace(sample, groups={}) for sample in own if sample.id not in dirty]
        for model, own in samples.items()
    }
    count = task.samples - len(dirty)
    again = compare(metrics, clean) if dirty and count else []
    contamination = Contamination(overlaps.rows, list(overlaps.missing), found, count, again)
    return dataclasses.replace(task, contamination=contamination)


def _training_sources(run: Path) -> list[tuple[str, str, FileOptions]]:
    """Paths, splits and options of the training data in a run.json; empty without one."""
    try:
        sources = json_object(run)["config"]["data"]["train"]
        return [(str(source["path"]), str(source.get("split")), _options(source)) for source in sources]
    except (KeyError, TypeError):
        return []


def _options(source: Mapping[str, Any]) -> FileOptions:
    return FileOptions(source.get("delimiter"), source.get("encoding"), source.get("filter") or {})


def _scan_file(index: Index, file: Path, options: FileOptions) -> tuple[int, list[str]]:
    """Compare every row of a training file. Returns the number of rows, and reasons why others were skipped."""
    if kind_of(file) == ".txt":
        return _scan_text_file(index, file, options), []
    count, chosen, bad = 0, RowFilter(options.filter), list[BadRow]()
    for row in read(file, 0, options):
        if isinstance(row, BadRow):
            bad.append(row)
        elif chosen.takes(row.value):
            index.scan(fields(row.value), row.place)
            count += 1
    reasons = [f"{counted(len(bad), 'row')} of {file} cannot be read: {bad[0]}"] if bad else []
    try:
        chosen.require_rows()
    except UserError as error:
        reasons.append(f"{file}: {error}")
    return count, reasons


def _scan_text_file(index: Index, file: Path, options: FileOptions) -> int:
    """Compare every line of a text file; a passage may span lines. Not every published corpus is UTF-8."""
    lines = [line.strip() for line in decoded(file, options.encoding).split("\n")]
    for number, line in enumerate(lines, start=1):
        if line:
            index.scan([line], f"{file}:{number}", continues=any(lines[number : number + 1]))
    return sum(map(bool, lines))
