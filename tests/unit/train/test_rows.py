"""Sources: which files or hub data sets they are, which of their rows are used, and what is said about the others."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import constants

from tests.support.data_tools import recipe, tokenizer, write_jsonl
from tests.support.ranks import Solo
from train.config import SourceConfig
from train.data.prepare import prepare
from train.data.rows import Problems, bad_rows_error, check_columns, draw, sampled, skipped_line
from train.data.sources import FileSource, Place, find
from zerotune.common.errors import UserError
from zerotune.data.raw_row import BadRow


def source(path, form="qa", **options):
    return find(SourceConfig(str(path), form, **options), "data.train[0]")


def numbers(rows):
    return [row.number for row in rows]


def test_rows_are_numbered_through_all_files_of_a_folder(tmp_path):
    write_jsonl(tmp_path / "b" / "second.jsonl", [{"n": 2}, {"n": 3}])
    write_jsonl(tmp_path / "a" / "first.jsonl", [{"n": 0}, {"n": 1}])
    (tmp_path / "c.csv").write_text("n\n4\n")
    rows = list(source(tmp_path).rows())
    assert [int(row.item.value["n"]) for row in rows] == [0, 1, 2, 3, 4] == numbers(rows)
    assert [(row.file, row.item.line) for row in rows] == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    assert rows[3].item.file.endswith("second.jsonl")


def test_reading_goes_on_from_any_place(tmp_path):
    for name in "abc":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"n": f"{name}{i}"} for i in range(3)])
    found = source(tmp_path)
    whole = list(found.rows())
    for cut, row in enumerate(whole, start=1):
        assert list(found.rows(row.after)) == whole[cut:]
    assert list(found.rows(Place())) == whole


def test_the_order_of_files_on_disk_makes_no_difference(tmp_path):
    contents = {f"part-{i}.jsonl": [{"n": i}] for i in range(12)}
    for folder, names in (("one", list(contents)), ("two", list(contents)[::-1])):
        for name in names:
            write_jsonl(tmp_path / folder / name, contents[name])
    one, two = source(tmp_path / "one"), source(tmp_path / "two")
    assert one.identity() == two.identity()
    assert [r.item.value for r in one.rows()] == [r.item.value for r in two.rows()]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_fraction_is_a_function_of_seed_and_row_number(tmp_path, share):
    found = source(write_jsonl(tmp_path / "a.jsonl", [{"n": i} for i in range(3000)]))
    first = numbers(sampled(found.rows(), share, 7, "fraction"))
    assert abs(len(first) / 3000 - share) < 0.04
    assert first == numbers(sampled(found.rows(), share, 7, "fraction"))
    assert first != numbers(sampled(found.rows(), share, 8, "fraction"))
    tail = list(found.rows())[1000:]
    assert numbers(sampled(iter(tail), share, 7, "fraction")) == [n for n in first if n >= 1000]


def test_a_smaller_fraction_is_part_of_a_larger_one(tmp_path):
    found = source(write_jsonl(tmp_path / "a.jsonl", [{"n": i} for i in range(1000)]))
    small, large = (set(numbers(sampled(found.rows(), share, 0, "fraction"))) for share in (0.3, 0.6))
    assert small < large


def test_turns_of_a_share_take_the_rows_one_after_another(tmp_path):
    found = source(write_jsonl(tmp_path / "a.jsonl", [{"n": i} for i in range(1000)]))
    turns = [set(numbers(sampled(found.rows(), 0.25, 0, "weight", turn=epoch * 0.25))) for epoch in range(4)]
    assert set.union(*turns) == set(range(1000))
    assert not any(one & other for one, other in itertools.combinations(turns, 2))


def test_drawn_numbers_look_random_and_depend_on_everything():
    drawn = draw(0, "a", np.arange(100_000))
    assert len(np.unique(drawn)) == 100_000
    assert abs((drawn / 2.0**64).mean() - 0.5) < 0.005
    assert abs(np.corrcoef(drawn[:-1] / 2.0**64, drawn[1:] / 2.0**64)[0, 1]) < 0.02
    assert np.array_equal(draw(0, "a", np.array([5])), drawn[5:6])
    assert draw(1, "a", np.array([5])) != drawn[5]
    assert draw(0, "b", np.array([5])) != drawn[5]


def test_columns_must_be_fields_of_the_format(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "x", "a": "y"}])
    with pytest.raises(
        UserError, match=r"data\.train\[0\]\.columns: format `qa` has no field prompt; it has question, answer"
    ):
        source(path, columns={"prompt": "q"})


def test_a_missing_file_is_never_looked_up_on_the_hub(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{}])
    with pytest.raises(
        UserError, match=r"data\.train\[0\]\.path: .*trian\.jsonl: no such file.*did you mean .*train\.jsonl"
    ):
        source(tmp_path / "trian.jsonl")
    with pytest.raises(UserError, match=r"data/train\.jsonl: no such file"):
        source("data/train.jsonl")


@pytest.fixture
def offline(monkeypatch):
    """The hub client as it is without a network."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_a_name_that_is_neither_here_nor_on_the_hub_says_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datas").mkdir()
    with pytest.raises(UserError) as caught:
        source("data")
    message = str(caught.value)
    assert "`data` is not a file, folder or glob here; did you mean datas?" in message
    assert "cannot be loaded as a data set of the hub" in message


def counted(rows, reasons, missing=0, columns=()):
    problems = Problems(rows=rows, missing=missing, columns=list(columns))
    for line, reason in enumerate(reasons, start=1):
        problems.add(0, BadRow("ignored", line, reason))
    return problems


def test_one_error_lists_the_first_ten_bad_rows_and_counts_all(tmp_path):
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [{}]) for name in "ab"]
    a, b = (source(path) for path in paths)
    error = bad_rows_error(
        [(a, counted(100, ["field `answer` is null"] * 8)), (b, counted(50, ["not UTF-8: byte"] * 5))]
    )
    lines = str(error).splitlines()
    assert lines[0] == "13 of 150 rows cannot be used:"
    assert lines[1] == f"  {paths[0]}:1: field `answer` is null"
    assert lines[10] == f"  {paths[1]}:2: not UTF-8: byte"
    assert lines[11] == "  and 3 more"
    assert lines[12].endswith("data.on_bad_row: skip")
    assert len(lines) == 13


def test_skipped_rows_are_counted_by_the_kind_of_their_reason():
    problems = counted(10, ["not valid JSON: cut off (x)", "field `a` is null", "not valid JSON: other (column 3)"])
    assert skipped_line(problems, ["x.jsonl"]) == (
        "3 of 10 rows skipped: 2 not valid JSON, 1 field `a` is null;"
        " the first is x.jsonl:1: not valid JSON: cut off (x)"
    )
    again = Problems.from_json(json.loads(json.dumps(problems.to_json())))
    assert skipped_line(again, ["x.jsonl"]) == skipped_line(problems, ["x.jsonl"])


def test_a_column_that_no_row_has_is_one_message(tmp_path):
    found = FileSource(SourceConfig("rows", "qa"), "data.train[1]", [])
    check_columns(found, counted(3, [], missing=2))
    lacks_answer = ["field `answer` is missing"] * 3
    with pytest.raises(UserError) as caught:
        check_columns(found, counted(3, lacks_answer, missing=3, columns=["question", "a"]))
    assert str(caught.value) == (
        "data.train[1] (rows): format `qa` needs question and answer; field `answer` is missing in every"
        " row (3 rows). Its columns are: question, a. Map them with data.train[1].columns, or choose another format"
    )


def test_missing_columns_of_labelled_rows_list_every_choice():
    found = FileSource(SourceConfig("rows", "labelled"), "data.train[0]", [])
    needed = "needs label, and sentence or text or both sentence1 and sentence2; field `label` is missing in every row"
    with pytest.raises(UserError, match=needed):
        check_columns(found, counted(3, ["field `label` is missing"] * 3, missing=3, columns=["sentence"]))


@pytest.mark.usefixtures("offline")
def test_a_hub_data_set_is_read_like_a_file(tmp_path, monkeypatch):
    """The library's own cache stands in for the hub: what was loaded once is found there without a network."""
    rows = [{"question": f"What is {i}?", "answer": f"{i}." if i != 3 else None} for i in range(5)]
    made = datasets.load_dataset(
        "json", data_files=str(write_jsonl(tmp_path / "x.jsonl", rows)), cache_dir=str(tmp_path / "made"), split="train"
    )
    folder = tmp_path / "hub" / "org___name" / "default" / "0.0.0" / ("0" * 40)
    folder.mkdir(parents=True)
    for file in Path(made.cache_files[0]["filename"]).parent.iterdir():
        shutil.copy(file, folder / file.name.replace("json-train", "name-train"))
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "dataset_name": "name"}))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")

    found = source("org/name")
    assert [row.item.value for row in found.rows()] == rows
    assert [row.item.value for row in found.rows(Place(0, 3, 3))] == rows[3:]
    assert found.lines() == [5]
    config = recipe(tmp_path / "cache", SourceConfig("org/name", "qa"), on_bad_row="skip")
    corpus = prepare(config, tokenizer(), 0, Solo())
    assert [corpus.train.row_id(row) for row in range(4)] == [f"org/name/train:{i}" for i in (1, 2, 3, 5)]
    again = prepare(config, tokenizer(), 0, Solo())
    assert "(from the cache)" in again.lines[0]
    with pytest.raises(UserError, match=r"org/name/train:4: field `answer` is null"):
        prepare(recipe(tmp_path / "cache", SourceConfig("org/name", "qa")), tokenizer(), 0, Solo())
