"""Streaming: windows hold every row once, in proportion, are made once, and go on from any place."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.data_tools import recipe, tokenizer, write_jsonl
from tests.support.ranks import Solo, together
from train.config import SourceConfig
from train.data.prepare import stream
from train.data.token_table import TABLE
from zerotune.common.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def rows(name, count):
    return [{"text": f"{name} number {i}"} for i in range(count)]


def streamed(folder, *sources, window=10, seed=0, ranks=None, **options):
    config = recipe(folder / "cache", *sources, streaming=True, streaming_window_rows=window, **options)
    return stream(config, tokenizer(), seed, ranks or Solo())


def ids_of(window):
    return [window.row_id(row) for row in range(len(window))]


def tables(folder):
    return sorted((path, path.stat().st_mtime_ns) for path in (folder / "cache").rglob(TABLE))


def test_windows_hold_every_row_once_in_order(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows("a", 34))
    windows = list(streamed(tmp_path, SourceConfig(str(path), "text")).windows(0))
    assert [len(window) for window in windows] == [10, 10, 10, 4]
    assert [row for window in windows for row in ids_of(window)] == [f"{path}:{i + 1}" for i in range(34)]


@pytest.mark.parametrize("count", [20, 21])
def test_an_epoch_ends_with_its_last_row(tmp_path, count):
    path = write_jsonl(tmp_path / "a.jsonl", rows("a", count))
    corpus = streamed(tmp_path, SourceConfig(str(path), "text"))
    assert [sum(map(len, corpus.windows(epoch))) for epoch in range(3)] == [count] * 3


def test_windows_are_tokenised_once_over_epochs_and_resumes(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows("a", 34))
    source = SourceConfig(str(path), "text")
    first = [window.digest for window in streamed(tmp_path, source).windows(0)]
    made = tables(tmp_path)
    again = streamed(tmp_path, source)
    assert [window.digest for window in again.windows(0, start=2)] == first[2:]
    assert [window.digest for window in again.windows(1)] == first
    assert tables(tmp_path) == made
    assert len(made) == 4


def test_a_resumed_stream_reads_on_where_the_last_window_ended(tmp_path):
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", rows(name, count)) for name, count in (("a", 40), ("b", 23))]
    sources = [SourceConfig(str(path), "text") for path in paths]
    whole = [ids_of(window) for window in streamed(tmp_path / "whole", *sources).windows(0)]
    taken = list(itertools.islice(streamed(tmp_path / "cut", *sources).windows(0), 3))
    rest = [ids_of(window) for window in streamed(tmp_path / "cut", *sources).windows(0, start=3)]
    assert [ids_of(window) for window in taken] + rest == whole
    lost = [ids_of(window) for window in streamed(tmp_path / "lost", *sources).windows(0, start=3)]
    assert lost == whole[3:]  # without any record of the windows before


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("text", {"text": "a"}),
        ("qa", {"question": "a", "answer": "b"}),
        ("chat", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    ],
)
def test_a_run_of_an_earlier_encoder_goes_on_where_it_wrote_the_same_rows(tmp_path, monkeypatch, form, row):
    source = SourceConfig(str(write_jsonl(tmp_path / "a.jsonl", [row])), form)
    now = streamed(tmp_path, source)
    monkeypatch.setattr("train.data.token_cache.ENCODER_VERSION", 3)
    before = streamed(tmp_path, source)
    assert now.content != before.content  # windows are tokenised anew
    assert (now.digest == before.digest) == (form != "chat")


def test_sources_are_mixed_in_proportion_throughout(tmp_path):
    big = write_jsonl(tmp_path / "big.jsonl", rows("big", 300))
    small = write_jsonl(tmp_path / "small.jsonl", rows("sml", 100))
    corpus = streamed(tmp_path, SourceConfig(str(big), "text"), SourceConfig(str(small), "text", weight=2.0), window=50)
    windows = list(corpus.windows(0))
    counts = Counter(row for window in windows for row in ids_of(window))
    assert all(counts[f"{big}:{i + 1}"] == 1 for i in range(300))
    assert all(counts[f"{small}:{i + 1}"] == 2 for i in range(100))
    shares = [(window.sources_n == 1).mean() for window in windows]
    assert all(abs(share - 0.4) < 0.05 for share in shares)


def test_a_weight_below_one_takes_other_rows_each_epoch(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows("a", 200))
    corpus = streamed(tmp_path, SourceConfig(str(path), "text", weight=0.5), window=40)
    seen = [{row for window in corpus.windows(epoch) for row in ids_of(window)} for epoch in range(2)]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 200


def test_changed_files_and_settings_make_other_windows(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows("a", 15))
    source = SourceConfig(str(path), "text")
    digests = [streamed(tmp_path, source).digest]
    digests.append(streamed(tmp_path, source, window=5).digest)
    digests.append(streamed(tmp_path, source, max_length_tokens=32).digest)
    digests.append(streamed(tmp_path, source, seed=1).digest)
    write_jsonl(path, rows("b", 15))
    os.utime(path, (1, 1))
    digests.append(streamed(tmp_path, source).digest)
    assert len(set(digests)) == len(digests)
    text = next(streamed(tmp_path, source).windows(0)).tokens(0)[0]
    assert tokenizer().decode(text) == "b number 0</s>"


def test_bad_rows_stop_the_stream_at_their_window_or_are_left_out(tmp_path):
    values = rows("a", 30)
    values[17] = {"text": None}
    path = write_jsonl(tmp_path / "a.jsonl", values)
    strict = streamed(tmp_path, SourceConfig(str(path), "text")).windows(0)
    assert len(next(strict)) == 10
    with pytest.raises(UserError, match=r"1 of 10 rows cannot be used:\n  .*a\.jsonl:18: field `text` is null"):
        next(strict)
    loose = list(streamed(tmp_path, SourceConfig(str(path), "text"), on_bad_row="skip").windows(0))
    assert [len(window) for window in loose] == [10, 9, 10]
    assert loose[1].notes[0].startswith("window 1: data.train[0]: 1 of 10 rows skipped: 1 field `text` is null")
    with pytest.raises(UserError, match=r"a\.jsonl:18"):
        list(streamed(tmp_path, SourceConfig(str(path), "text")).windows(0))


def test_what_was_left_out_is_counted_and_a_window_of_bad_rows_alone_is_told_too(tmp_path):
    values = rows("a", 30)
    for number in (3, *range(10, 20)):
        values[number] = {"text": ""}
    path = write_jsonl(tmp_path / "a.jsonl", values)
    corpus = streamed(tmp_path, SourceConfig(str(path), "text"), on_bad_row="skip")
    told = [note for window in corpus.windows(0) for note in window.notes]
    assert [note.split(" rows")[0] for note in told] == [
        "window 0: data.train[0]: 1 of 10",
        "window 1: data.train[0]: 10 of 10",
    ]
    assert corpus.rows_left_out == 11


def test_a_weight_that_draws_no_row_names_its_key(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows("a", 4))
    with pytest.raises(UserError, match=r"no row to learn from.*data\.train\[0\]\.weight \(0\.01\).*raise it"):
        list(streamed(tmp_path, SourceConfig(str(path), "text", weight=0.01)).windows(0))


def test_a_stream_without_a_usable_row_ends_with_a_message(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [])
    with pytest.raises(UserError, match="no row to learn from"):
        list(streamed(tmp_path, SourceConfig(str(path), "text")).windows(0))


def test_validation_data_are_at_rest_and_overlap_is_found_in_each_window(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", rows("a", 30))
    held = write_jsonl(tmp_path / "held.jsonl", [{"text": "A  number 15"}, {"text": "new"}])
    validation = [SourceConfig(str(held), "text")]
    corpus = streamed(tmp_path, SourceConfig(str(path), "text"), validation=validation, on_overlap="drop")
    assert len(corpus.validation) == 2
    windows = list(corpus.windows(0))
    assert [len(window) for window in windows] == [10, 9, 10]
    assert f"{path}:16 = {held}:1" in windows[1].notes[0]


def test_all_ranks_see_the_same_windows_and_the_same_error(tmp_path):
    values = rows("a", 25)
    values[22] = {"other": 1}
    path = write_jsonl(tmp_path / "a.jsonl", values)

    def work(ranks):
        seen = []
        try:
            for window in streamed(tmp_path, SourceConfig(str(path), "text"), ranks=ranks).windows(0):
                seen.append(window.digest)
        except UserError as error:
            return seen, str(error)
        return seen, ""

    (first, error), (second, same_error) = together(2, work)
    assert first == second
    assert len(first) == 2
    assert "a.jsonl:23: field `text` is missing" in error
    assert same_error == error
    assert len(tables(tmp_path)) == 2


MEASURE = """
import resource, sys
from tests.support.data_tools import recipe, tokenizer
from tests.support.ranks import Solo
from train.config import SourceConfig
from train.data.prepare import stream
config = recipe(sys.argv[2], SourceConfig(sys.argv[1], "text"), streaming=True, streaming_window_rows=200)
for window in stream(config, tokenizer(), 0, Solo()).windows(0):
    print(int(window.lengths_n.sum()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text((json.dumps({"text": "word and another word " * 100}) + "\n") * 8000)
    words = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    tokens, peaks_kib = zip(*(map(int, line.split()) for line in result.stdout.splitlines()), strict=True)
    assert len(tokens) == 40
    later_mib = sum(tokens[15:]) * 5 / 2**20  # of tokens and masks alone, made after the first windows
    assert later_mib > 10
    assert (peaks_kib[-1] - peaks_kib[14]) / 1024 < later_mib / 3
