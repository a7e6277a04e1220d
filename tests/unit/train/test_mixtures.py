"""Weights, fractions, a held-out share and overlap in one recipe, at rest; and every kind of source as a stream."""

from __future__ import annotations

import re
from collections import Counter

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support.data_tools import recipe, tokenizer, write_jsonl
from tests.support.ranks import Solo
from tests.support.row_tables import row_ids, shape
from train.config import DurationConfig, SourceConfig
from train.data.prepare import prepare, stream
from train.data.schedule import FixedSteps
from zerotune.common.errors import UserError


def questions(name, count, start=0):
    return [{"question": f"What is {name} {i}?", "answer": f"It is {i}."} for i in range(start, start + count)]


def ids_of(rows):
    return [rows.row_id(row) for row in range(len(rows))]


def texts_of(rows):
    return [tokenizer().decode(rows.tokens(row)[0]) for row in range(len(rows))]


def test_weight_fraction_held_out_share_and_overlap_together(tmp_path):
    big = write_jsonl(tmp_path / "big.jsonl", questions("big", 200))
    small = write_jsonl(tmp_path / "small.jsonl", questions("small", 70) + questions("big", 30))  # 30 in both files
    sources = [SourceConfig(str(big), "qa", weight=2.0, fraction=0.5), SourceConfig(str(small), "qa", weight=0.5)]
    config = recipe(tmp_path / "cache", *sources, validation_fraction=0.2, on_overlap="drop")
    corpus = prepare(config, tokenizer(), 0, Solo())
    train, held = corpus.train, corpus.validation

    [line] = [line for line in corpus.lines if "removed from training" in line]
    dropped = int(re.search(r"(\d+) training row\(s\) are there too, and 0 more", line)[1])
    assert dropped > 0
    drawn = len(train) + len(held) + dropped - 100  # of the big file
    assert 80 <= drawn <= 120
    assert len(held) == round(0.2 * (drawn + 100))
    assert not set(texts_of(train)) & set(texts_of(held))

    limits = DurationConfig(max_epochs=2)
    steps = FixedSteps(train, [s.weight for s in sources], shape(step=300, micro=300), 0, limits, Solo())
    seen = [Counter[str](), Counter[str]()]
    for number, step in enumerate(steps.walk(0)):
        seen[number >= steps.plan.epoch_ends[0]].update(row_ids(step))
    for epoch in seen:
        assert {count for row, count in epoch.items() if row.startswith(str(big))} == {2}
        assert {count for row, count in epoch.items() if row.startswith(str(small))} == {1}
    assert seen[0].keys() & seen[1].keys() == {row for row in ids_of(train) if row.startswith(str(big))}
    halves = [{row for row in epoch if row.startswith(str(small))} for epoch in seen]
    assert abs(len(halves[0] | halves[1]) - len([row for row in ids_of(train) if row.startswith(str(small))])) <= 1


@pytest.mark.parametrize("weight", [0.1, 0.01])
def test_a_weight_that_draws_no_row_names_its_key(tmp_path, weight):
    many, few = (write_jsonl(tmp_path / f"{n}.jsonl", questions(str(n), n)) for n in (100, 4))
    sources = [SourceConfig(str(many), "qa"), SourceConfig(str(few), "qa", weight=weight)]
    with pytest.raises(UserError, match=rf"data\.train\[1\]\.weight: {weight} of 4 row\(s\) is less than one row"):
        prepare(recipe(tmp_path / "cache", *sources), tokenizer(), 0, Solo())
    assert len(prepare(recipe(tmp_path / "cache", sources[0]), tokenizer(), 0, Solo()).train) == 100
    quarter = SourceConfig(str(few), "qa", weight=0.25)
    assert len(prepare(recipe(tmp_path / "cache", quarter), tokenizer(), 0, Solo()).train) == 4


def test_a_fraction_that_draws_no_row_names_its_key(tmp_path):
    path = write_jsonl(tmp_path / "few.jsonl", questions("few", 4))
    config = recipe(tmp_path / "cache", SourceConfig(str(path), "qa", fraction=0.001))
    with pytest.raises(UserError, match=r"data\.train\[0\]\.fraction \(0\.001\)"):
        prepare(config, tokenizer(), 0, Solo())


def test_what_was_left_out_is_counted(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [*questions("a", 20), {"question": "x", "answer": None}])
    config = recipe(tmp_path / "cache", SourceConfig(str(path), "qa"), on_bad_row="skip")
    assert prepare(config, tokenizer(), 0, Solo()).rows_left_out == 1


def streamed(folder, *sources, window=4, **options):
    config = recipe(folder / "cache", *sources, streaming=True, streaming_window_rows=window, **options)
    return stream(config, tokenizer(), 0, Solo())


def test_a_streamed_mixture_keeps_weights_and_fractions_and_drops_overlap(tmp_path):
    big = write_jsonl(tmp_path / "big.jsonl", questions("big", 200))
    small = write_jsonl(tmp_path / "small.jsonl", questions("small", 100))
    held = write_jsonl(tmp_path / "held.jsonl", questions("small", 8))
    sources = [SourceConfig(str(big), "qa", fraction=0.5), SourceConfig(str(small), "qa", weight=2.0)]
    validation = [SourceConfig(str(held), "qa")]
    corpus = streamed(tmp_path, *sources, window=30, validation=validation, on_overlap="drop")
    seen = Counter(row for window in corpus.windows(0) for row in ids_of(window))
    assert {seen[f"{small}:{i + 1}"] for i in range(8)} == {0}
    assert {seen[f"{small}:{i + 1}"] for i in range(8, 100)} == {2}
    drawn = {row for row in seen if row.startswith(str(big))}
    assert 80 <= len(drawn) <= 120
    at_rest = prepare(recipe(tmp_path / "cache", sources[0]), tokenizer(), 0, Solo())
    assert drawn == set(ids_of(at_rest.train))


def test_a_window_of_overlap_alone_is_dropped_and_the_stream_goes_on(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", questions("a", 12))
    held = write_jsonl(tmp_path / "held.jsonl", questions("a", 4, start=4))
    validation = [SourceConfig(str(held), "qa")]
    corpus = streamed(tmp_path, SourceConfig(str(path), "qa"), validation=validation, on_overlap="drop")
    windows = list(corpus.windows(0))
    assert [len(window) for window in windows] == [4, 0, 4]
    assert [len(window.notes) for window in windows] == [0, 1, 0]


def test_text_files_are_streamed_by_document(tmp_path):
    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(f"document {i}\nof a" for i in range(5)))
    (tmp_path / "b.txt").write_text("a whole file " * 40)
    windows = list(streamed(tmp_path, SourceConfig(str(tmp_path / "*.txt"), "text")).windows(0))
    assert [len(set(ids_of(window))) for window in windows] == [4, 2]
    assert texts_of(windows[0])[:2] == ["document 0\nof a</s>", "document 1\nof a</s>"]
    assert len(windows[1]) > 2  # the long document goes on in further rows
    assert ids_of(windows[1])[-1] == f"{tmp_path}/b.txt:1"


def test_a_folder_of_mixed_kinds_is_streamed_in_the_order_of_names(tmp_path):
    folder = tmp_path / "data"
    write_jsonl(folder / "a.jsonl", questions("a", 3))
    (folder / "b.csv").write_text("question,answer\nWhat is b?,It is b.\n")
    (folder / "c.json").write_text('[{"question": "What is c?", "answer": "It is c."}, {"question": "no answer"}]')
    parquet.write_table(pa.Table.from_pylist(questions("d", 3)), folder / "d.parquet")
    (folder / "notes.md").write_text("no data")
    corpus = streamed(tmp_path, SourceConfig(str(folder), "qa"), on_bad_row="skip")
    windows = list(corpus.windows(0))
    names = ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.csv:2", "c.json:1, row 1"]
    names += ["d.parquet:1", "d.parquet:2", "d.parquet:3"]
    assert [row for window in windows for row in ids_of(window)] == [f"{folder}/{name}" for name in names]
    assert "c.json:1, row 2: field `answer` is missing" in windows[1].notes[0]
    resumed = streamed(tmp_path / "other", SourceConfig(str(folder), "qa"), on_bad_row="skip")
    assert [ids_of(window) for window in resumed.windows(0, start=1)] == [ids_of(window) for window in windows[1:]]


def test_a_data_set_of_the_hub_is_streamed(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, subset, **options):
        asked.append((name, subset, options))
        assert options["streaming"]
        return datasets.IterableDataset.from_generator(lambda: iter(questions("hub", 10)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = SourceConfig("someone/some-data:main", "qa", split="test", revision="abc")
    windows = list(streamed(tmp_path, source).windows(0))
    assert asked[0] == ("someone/some-data", "main", {"split": "test", "revision": "abc", "streaming": True})
    assert [len(window) for window in windows] == [4, 4, 2]
    assert ids_of(windows[1])[0] == "someone/some-data:main/test:5"
    other = streamed(tmp_path / "other", source)
    assert [ids_of(window) for window in other.windows(0, start=2)] == [ids_of(windows[2])]
