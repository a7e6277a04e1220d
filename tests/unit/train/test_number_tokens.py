"""Numbers of rows on their way to the model: the right value beside each `<NUM>`, in every format and layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.data_tools import corpus_of, recipe, tokenizer, write_jsonl
from tests.support.ranks import Solo
from train.config import SourceConfig
from train.data.label_encoder import LabelSpec
from train.data.micro_batches import Shape, collate
from train.data.prepare import Corpus, prepare, stream
from train.data.setup import set_up
from train.data.token_cache import entry_key
from zerotune.common.errors import UserError
from zerotune.data.numbers_in_text import NUM
from zerotune.models.numeric import add_token

NUMBERS = LabelSpec(numbers=True)


def using(**options: Any) -> Any:
    made = tokenizer(**options)
    add_token(made)
    return made


def corpus(folder: Path, rows: list[dict[str, Any]], form: str, made: Any = None, **options: Any) -> Corpus:
    return corpus_of(folder, rows, form, made or using(), label_spec=options.pop("label_spec", NUMBERS), **options)


def shown(found: Corpus, made: Any, row: int = 0) -> tuple[str, list[float]]:
    """(the text of a row, the value of each of its numbers)"""
    (document,) = found.train.documents(row)
    is_number_t = document.ids_t == made.convert_tokens_to_ids(NUM)
    assert document.values_t is not None
    assert not document.values_t[~is_number_t].any()
    return made.decode(document.ids_t.tolist()), document.values_t[is_number_t].tolist()


QUESTION = {"question": "价格是１２３元，x2 costs 1,234.5?", "answer": "It is -7 or 0."}
TALK = [
    {"role": "user", "content": "Add 3-5 to 1/2."},
    {"role": "assistant", "content": "8"},
    {"role": "user", "content": "9"},
    {"role": "assistant", "content": "17"},
]
FORMS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "text": ({"text": "Between 1e300 and -1e300 lies 0."}, [1e300, -1e300, 0.0]),
    "qa": (QUESTION, [123.0, 1234.5, -7.0, 0.0]),
    "pr": ({"prompt": "2 and", "response": "3"}, [2.0, 3.0]),
    "io": ({"instruction": "Add", "input": "2.5", "output": "5"}, [2.5, 5.0]),
    "chat": ({"messages": TALK}, [3.0, 5.0, 8.0, 9.0, 17.0]),
    "labelled": ({"sentence": "It rose by 5 %", "label": "up 10"}, [5.0, 10.0]),
}


@pytest.mark.parametrize("template", ["plain", "chatml", "raw"])
@pytest.mark.parametrize("form", FORMS)
def test_each_format_keeps_its_values(form: str, template: str, tmp_path: Path) -> None:
    row, expected = FORMS[form]
    made = using()
    text, values = shown(corpus(tmp_path, [row], form, made, chat_template=template), made)
    assert values == expected
    assert text.count(NUM) == len(expected)


def test_only_answers_are_learned_and_numbers_end_no_answer(tmp_path: Path) -> None:
    made = using()
    found = corpus(tmp_path, [{"messages": TALK}], "chat", made, chat_template="chatml")
    ids_t, labels_t = found.train.tokens(0)
    number = made.convert_tokens_to_ids(NUM)
    is_learned_n = (labels_t != -100)[ids_t == number]
    assert is_learned_n.tolist() == [False, False, True, False, True]
    assert found.stop_ids == (made.convert_tokens_to_ids("<|im_end|>"),)
    raw = corpus(tmp_path / "raw", [{"prompt": "2", "response": "3"}], "pr", made, chat_template="raw")
    assert number not in raw.stop_ids


@pytest.mark.parametrize("fraction", [0.0, 0.4])
def test_learned_values_are_those_of_the_answers_in_the_split(tmp_path: Path, fraction: float) -> None:
    made = using()
    rows = [
        {"question": f"Is it {n}?", "answer": f"No, {n + 0.5} or {n * 10**6}." if n % 3 else "No."} for n in range(20)
    ]
    found = corpus(tmp_path, rows, "qa", made, validation_fraction=fraction)
    expected: list[float] = []
    for row in range(len(found.train)):
        ids_t, labels_t = found.train.tokens(row)
        values_t = found.train.number_values(row)
        assert values_t is not None
        expected += values_t[(ids_t == made.convert_tokens_to_ids(NUM)) & (labels_t != -100)].tolist()
    assert len(expected) == 2 * sum(n % 3 > 0 for n in range(20)) or fraction
    assert sorted(found.train.learned_values()) == sorted(expected)


def test_no_number_crosses_from_prompt_to_answer(tmp_path: Path) -> None:
    made = using()
    found = corpus(tmp_path, [{"prompt": "12", "response": "34"}], "pr", made, chat_template="raw")
    assert shown(found, made)[1] == [12.0, 34.0]


def test_windows_of_a_long_text_repeat_the_value_of_a_repeated_token(tmp_path: Path) -> None:
    made = using()
    found = corpus(tmp_path, [{"text": " ".join(map(str, range(40)))}], "text", made, max_length_tokens=8)
    joined: list[float] = []
    for row in range(len(found.train)):
        (document,) = found.train.documents(row)
        assert document.values_t is not None
        is_number_t = document.ids_t == made.convert_tokens_to_ids(NUM)
        is_number_t[0] &= row == 0  # later windows repeat a token
        joined += document.values_t[is_number_t].tolist()
    assert joined == [float(n) for n in range(40)]


def test_a_truncated_row_keeps_the_values_before_the_cut(tmp_path: Path) -> None:
    made = using()
    row = {"question": "1 2 3", "answer": " ".join(map(str, range(90)))}
    values = shown(corpus(tmp_path, [row], "qa", made, max_length_tokens=40), made)[1]
    assert values[:3] == [1.0, 2.0, 3.0]
    assert values[3:] == [float(n) for n in range(len(values) - 3)]
    assert len(values) < 40


def test_special_tokens_with_digits_stay_whole(tmp_path: Path) -> None:
    made = using(marks=("<|im_start|>", "<|im_end|>", "<|reserved_7|>"))
    text, values = shown(corpus(tmp_path, [{"text": "<|reserved_7|> has 7"}], "text", made), made)
    assert "<|reserved_7|>" in text
    assert values == [7.0]


@pytest.mark.parametrize("packed", [True, False])
def test_batches_have_values_where_numbers_are(tmp_path: Path, packed: bool) -> None:
    made = using()
    rows = [{"question": f"{n} " * (n + 1), "answer": f"{n}.5"} for n in range(4)]
    found = corpus(tmp_path, rows, "qa", made)
    shape = Shape(packed, 512, 512, 64, True, int(made.pad_token_id))
    batch = collate(found.train, [2, 0, 3], shape, filler=0)
    ids_bt, values_bt = batch.inputs["input_ids"], batch.inputs["values"]
    assert values_bt.dtype == torch.float64
    assert values_bt.shape == ids_bt.shape
    is_number_bt = ids_bt == made.convert_tokens_to_ids(NUM)
    assert values_bt[is_number_bt].tolist() == [2.0] * 3 + [2.5] + [0.0] + [0.5] + [3.0] * 4 + [3.5]
    assert not values_bt[~is_number_bt].any()
    assert collate(found.train, [], shape, filler=1).inputs["values"].any()


def test_the_digest_depends_on_values_alone(tmp_path: Path) -> None:
    made = using()
    found = [corpus(tmp_path / text, [{"text": f"It is {text}"}], "text", made) for text in ("5", "6", "5.0")]
    assert found[0].train.tokens(0)[0].tolist() == found[1].train.tokens(0)[0].tolist()
    digests = [one.train.digest for one in found]
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]


def test_a_stream_has_the_values_of_the_whole(tmp_path: Path) -> None:
    made = using()
    rows = [{"text": f"{n} and {n}.25"} for n in range(9)]
    whole = corpus(tmp_path, rows, "text", made)
    source = SourceConfig(str(write_jsonl(tmp_path / "rows.jsonl", rows)), "text")
    config = recipe(tmp_path / "cache", source, streaming=True, streaming_window_rows=4)
    windows = list(stream(config, made, 0, Solo(), label_spec=NUMBERS).windows(0))
    found = [value for window in windows for row in range(len(window)) for value in window.documents(row)[0].values_t]
    expected = [value for row in range(9) for value in whole.train.documents(row)[0].values_t]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("form", ["text", "qa", "chat", "labelled"])
def test_tables_with_numbers_are_cached_apart(tmp_path: Path, form: str) -> None:
    def key(label_spec: LabelSpec) -> str:
        return entry_key(["x"], set_up(recipe(tmp_path, SourceConfig("x", form)), using(), label_spec).train[0], 0)

    assert key(NUMBERS) != key(LabelSpec())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "It is 1e+301."}, r"number too large: 1e\+301; the largest is 1e\+300"),
        ({"text": "It is <NUM>."}, "<NUM> in the text: it stands for a number"),
    ],
)
def test_bad_numbers_are_named_by_line(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: {reason}"):
        corpus(tmp_path, [{"text": "fine 5"}, row], "text")
    skipped = corpus(tmp_path / "skipped", [{"text": "fine 5"}, row], "text", on_bad_row="skip")
    assert len(skipped.train) == 1
    conversation = {"question": row["text"], "answer": "5"}
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: {reason}"):
        corpus(tmp_path / "qa", [conversation], "qa")


def test_worker_processes_read_the_same_values(tmp_path: Path) -> None:
    made = using()
    source = SourceConfig(str(write_jsonl(tmp_path / "rows.jsonl", [{"text": f"{n}"} for n in range(3000)])), "text")
    digests = [
        prepare(recipe(tmp_path / name, source, workers=workers), made, 0, Solo(), NUMBERS).digest
        for name, workers in (("one", 1), ("two", 2))
    ]
    assert digests[0] == digests[1]
