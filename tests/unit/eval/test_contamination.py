"""Rows of a test set in training data: found however they are written, and nothing else; the metrics without them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from eval.compare import compare
from eval.contamination import TrainingData, find_overlaps, texts_by_id, training_data, with_contamination
from eval.ngram_overlap import Fields, Index, fields, words
from eval.protocols import Sample, SampleMetric
from eval.result import TaskResult
from zerotune.common.errors import UserError
from zerotune.data.file_options import DEFAULT, FileOptions
from zerotune.data.files import read
from zerotune.data.raw_row import Row

LONG = "The quick brown fox jumps over the lazy dog while nine other foxes sleep under an old oak tree"
CHINESE = "敏捷的棕色狐狸跳过了懒狗，而九只狐狸在老橡树下睡着了。"
ACCURACY = SampleMetric("accuracy", higher_is_better=True, is_share=True)


def found(tests: list[Fields], training: list[Fields]) -> dict[int, tuple[str, str]]:
    index = Index([tests])
    for number, row in enumerate(training, start=1):
        index.scan(row, str(number))
    return index.found()


@pytest.mark.parametrize(
    ("test", "training", "how"),
    [
        (["What is this?", "A fox."], ["What is this?", "A fox."], "row"),
        (["What is this?", "A fox."], ["what is THIS", "a fox"], "words"),
        (["北京是首都。"], ["北京是首都"], "words"),
        ([LONG], [f"Somebody wrote: {LONG.upper()}! And went on."], "passage"),
        ([f"Read this. {LONG}", "yes"], [LONG, "no"], "passage"),
        ([CHINESE], [f"他说：{CHINESE}他又说了别的。"], "passage"),
        (["Is Paris the capital of France?", "yes"], ["Question: Is Paris the capital of France? Answer:"], "passage"),
    ],
)
def test_a_row_is_found_however_it_is_written(test: Fields, training: Fields, how: str) -> None:
    assert found([["something else altogether"], test], [["nothing"], training]) == {1: (how, "2")}


@pytest.mark.parametrize(
    ("test", "training"),
    [
        ([LONG], [" ".join(LONG.split()[:12])]),  # twelve words are not thirteen
        ([CHINESE], [CHINESE[:12]]),
        (["yes"], ["yes, he said"]),
        (["Is it so?", "yes"], ["Is it so?", "no"]),  # too short to be known again
        ([f"{LONG}."], [LONG[:60], LONG[60:], "and more"]),  # in two texts
        ([""], [""]),
    ],
)
def test_other_rows_are_not_found(test: Fields, training: Fields) -> None:
    assert found([test], [training]) == {}


def test_an_instruction_that_all_rows_share_is_no_leak() -> None:
    tests = [[f"{LONG}. Now say what {name} is, in a word, please."] for name in "abcdefghijklmnop"]
    assert found(tests, [[f"{LONG}. Another question."]]) == {}
    assert found(tests, [[tests[3][0] + " Indeed."]]) == {3: ("passage", "1")}


def test_the_strongest_way_and_the_first_place_are_told() -> None:
    assert found([[LONG]], [[f"{LONG} etc"], [LONG.upper()], [LONG], [LONG]]) == {0: ("row", "3")}


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tests: list[Fields] = [[f"{LONG} number {k} of the whole set of rows"] for k in range(40)]
    training: list[Fields] = [[f"{k} {tests[k][0]}"] for k in range(0, 40, 3)]
    monkeypatch.setattr("eval.ngram_overlap.COMMON_ROWS", 3)
    whole = found(tests, training)
    monkeypatch.setattr("eval.ngram_overlap.BLOCK", 30)
    assert found(tests, training) == whole
    assert sorted(whole) == list(range(0, 40, 3))


def test_texts_of_rows() -> None:
    row = {
        "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "tokens": ["IL-2", "gene"], "label": 3, "note": None, "empty": " ",
    }  # fmt: skip
    assert fields(row) == ["Q", "A", "IL-2 gene"]
    assert words("Ａ-1 北京's") == ["a", "1", "北", "京", "s"]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_on_one_line_are_found_each_for_itself() -> None:
    rows = [Row("f.json", 1, {"text": f"text number {k}"}, number=k) for k in (1, 2)]
    found = texts_by_id(rows, ["f.json:1, row 2"])
    assert found == {"f.json:1, row 2": ["text number 2"]}


def test_lines_of_a_text_file_are_rows_in_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(f"Zürich is nice@positive\n\n{LONG[:40]}\n{LONG[40:]}\n".encode("iso-8859-1"))
    rows = {"a": ["Zürich is nice", "positive"], "b": [LONG.replace("brown fox ", "brown fox\n")], "c": ["no"]}
    overlaps = find_overlaps(TrainingData({path: DEFAULT}, ()), {"quiz": rows})
    assert [(o.id, o.how, o.place.rpartition(":")[2]) for o in overlaps.found["quiz"]] == [
        ("a", "words", "1"),
        ("b", "passage", "3"),
    ]
    assert overlaps.rows == {str(path): 3}


def test_training_rows_that_are_not_compared_are_told(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a b c"}\n{"text":\n[]\n')
    options = FileOptions(filter={"lang": "zh"})
    rows = {"a": ("a b c",)}
    overlaps = find_overlaps(TrainingData({path: DEFAULT}, ("gone",)), {"quiz": rows})
    assert overlaps.rows == {str(path): 1}
    gone, broken = overlaps.missing
    assert gone == "gone"
    assert broken.startswith(f"2 rows of {path} cannot be read: {path}:2: not valid JSON")
    _, _, none = find_overlaps(TrainingData({path: options}, ("gone",)), {"quiz": rows}).missing
    assert none.startswith(f"{path}: filter: no row has lang: zh (1 row read)")


def test_the_record_of_a_merged_checkpoint_names_its_training_data(tmp_path: Path) -> None:
    data = write(tmp_path / "train.jsonl", {"question": "?", "answer": "!"})
    sources = [{"path": str(data), "format": "qa"}, {"path": "owner/nowhere", "format": "qa"}]
    (tmp_path / "run.json").write_text(json.dumps({"config": {"data": {"train": sources}}}))
    training = training_data([str(data)], [tmp_path, tmp_path / "absent"])
    assert list(training.files) == [data]  # once, though named twice
    assert [text.partition(":")[0] for text in training.missing] == ["owner/nowhere"]
    with pytest.raises(UserError, match=r"missing\.jsonl: no such file"):
        training_data([str(tmp_path / "missing.jsonl")], [])


def test_the_metrics_are_computed_again_on_the_clean_rows(tmp_path: Path) -> None:
    tests = write(tmp_path / "test.jsonl", *({"question": f"{LONG} {k}?", "answer": str(k)} for k in range(8)))
    training = write(tmp_path / "train.jsonl", *({"question": f"{LONG} {k}?", "answer": str(k)} for k in range(3)))
    ids = [f"{tests}:{k + 1}" for k in range(8)]
    samples = {
        model: [Sample(ids[k], {"accuracy": float(k < right)}) for k in range(8)]
        for model, right in (("base", 2), ("tuned", 5))
    }
    texts = texts_by_id(read(tests), ids)
    overlaps = find_overlaps(TrainingData({training: DEFAULT}, ()), {"quiz": texts})
    result = TaskResult("quiz", 1, {}, 8, [], compare([ACCURACY], samples), {})
    again = with_contamination(result, [ACCURACY], samples, overlaps).contamination
    assert again is not None
    assert [overlap.id for overlap in again.found] == ids[:3]
    assert again.clean == 5
    assert [estimate.value for estimate in again.metrics[0].estimates] == [0.0, 0.4]
    assert again.metrics[0].differences[0].won == 2
    none_left = {model: own[:3] for model, own in samples.items()}
    short = TaskResult("quiz", 1, {}, 3, [], compare([ACCURACY], none_left), {})
    empty = with_contamination(short, [ACCURACY], none_left, overlaps).contamination
    assert empty is not None
    assert (empty.clean, empty.metrics) == (0, [])


def test_the_published_phrasebank_split_is_contaminated_through_and_through(shared_data: Path) -> None:
    """66Agree, the published test set, is a subset of 50Agree, the published training set."""
    folder = shared_data / "financial_phrasebank"
    lines = (folder / "Sentences_66Agree.txt").read_text(encoding="iso-8859-1").split("\n")
    rows = {str(k): line.strip().rsplit("@", 1) for k, line in enumerate(lines) if line.strip()}
    assert len(rows) == 4217
    overlaps = find_overlaps(TrainingData({folder / "Sentences_50Agree.txt": DEFAULT}, ()), {"phrasebank": rows})
    assert len(overlaps.found["phrasebank"]) == 4217
    assert {overlap.how for overlap in overlaps.found["phrasebank"]} == {"words"}
    prompts = Index([list(rows.values())])  # as the published prompts write them; the shortest sentences escape
    for sentence, label in rows.values():
        prompts.scan([f"sentence: {sentence} Label: ", label], "x")
    assert len(prompts.found()) > 0.98 * 4217


def test_time_grows_with_the_training_rows_alone() -> None:
    index = Index([[[f"{LONG} {k}"] for k in range(2000)]])
    start = time.perf_counter()
    for k in range(20_000):
        index.scan([f"Row {k} says nothing of interest, but says it at some length, as training rows do"], str(k))
    assert index.found() == {}
    assert time.perf_counter() - start < 15  # about 1 s; a comparison of all pairs would take hours
