"""Labelled, tagged and preference rows as tokens: what is marked, with which gold answer, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.tasks import reward_model, sequence_classification
from tests.support.data_tools import recipe, tokenizer, write_jsonl
from tests.support.ranks import Solo
from train.config import SourceConfig
from train.data.prepare import Corpus, LabelSpec, prepare
from zerotune.common.errors import UserError
from zerotune.data import raw_row
from zerotune.inference.prompt import Prompter

Row = dict[str, Any]
TAGS = LabelSpec(("tagged",), "classes")
CLASSES = LabelSpec(("labelled",), "classes")
VALUES = LabelSpec(("labelled",), "values")
ONE_CLASS = LabelSpec(("labelled",), "classes", ("no",))
ONE_TAG = LabelSpec(("tagged",), "classes", ("O",))
PAIRS = LabelSpec(("preference",), "values")


def made(folder: Path, rows: list[Row], label_spec: LabelSpec, using: Any = None, **options: Any) -> Corpus:
    path = write_jsonl(folder / "rows.jsonl", rows)
    config = recipe(folder / "cache", SourceConfig(str(path), label_spec.formats[0]), **options)
    return prepare(config, using or tokenizer(), 0, Solo(), label_spec)


def marked(corpus: Corpus, row: int, using: Any = None) -> list[tuple[str, Any]]:
    """(text up to and with the marked token, gold answer) of each mark."""
    using = using or tokenizer()
    found = []
    for document in corpus.train.documents(row):
        begin = 0
        for place in np.flatnonzero(~np.isnan(document.targets_t)):
            gold = float(document.targets_t[place])
            names = corpus.train.labels
            found.append(
                (using.decode(document.ids_t[begin : place + 1].tolist()), names[int(gold)] if names else gold)
            )
            begin = place + 1
    return found


def test_a_word_has_its_class_at_its_first_token(tmp_path: Path) -> None:
    row = {"tokens": ["The", "lazyfox", "jumps"], "tags": ["O", "B-animal", "O"]}
    corpus = made(tmp_path, [row], TAGS)
    assert corpus.train.labels == ("O", "B-animal")
    words = marked(corpus, 0)
    assert [gold for _, gold in words] == ["O", "B-animal", "O"]
    assert words[0][0] == "The"
    assert words[1][0].startswith(" l")
    assert len(words[1][0]) < len(" lazyfox")


def test_or_at_all_of_them_of_which_only_the_first_is_measured(tmp_path: Path) -> None:
    row = {"tokens": ["The", "lazyfox", "jumps"], "tags": ["O", "B-animal", "O"]}
    corpus = made(tmp_path, [row], LabelSpec(("tagged",), "classes", sub_words="all"))
    golds = [gold for _, gold in marked(corpus, 0)]
    assert golds[0] == golds[-1] == "O"
    assert golds[1] == "B-animal"
    assert set(golds[2:-1]) == {"I-animal"}
    marks, _ = corpus.train.label_values(0)
    assert (marks == 1).sum() == 3
    assert len(golds) == len(corpus.train.documents(0)[0].ids_t)


def test_no_gold_tag_of_a_long_sentence_is_lost_and_none_is_learned_twice(tmp_path: Path) -> None:
    words = [f"word{k}" for k in range(60)]
    row = {"tokens": words, "tags": [f"B-{k}" for k in range(60)]}
    corpus = made(tmp_path, [row], TAGS, max_length_tokens=32)
    assert len(corpus.train) > 5
    assert max(corpus.train.lengths_n) <= 32
    golds = [gold for window in range(len(corpus.train)) for _, gold in marked(corpus, window)]
    assert golds == row["tags"]
    assert len({corpus.train.where(window) for window in range(len(corpus.train))}) == 1
    assert any("sentence continues in further rows" in line for line in corpus.lines)


def test_sentences_that_share_a_line_are_sentences_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"tokens": ["a", word], "tags": ["O", "O"]} for word in ("b", "c")]))
    corpus = prepare(recipe(tmp_path / "cache", SourceConfig(str(path), "tagged")), tokenizer(), 0, Solo(), TAGS)
    assert corpus.train.where(0) != corpus.train.where(1)
    assert [corpus.train.row_id(row) for row in (0, 1)] == [f"{path}:1, row 1", f"{path}:1, row 2"]


def test_classes_of_the_recipe_or_of_the_data(tmp_path: Path) -> None:
    rows = [{"sentence": "a", "label": "no"}, {"sentence": "b", "label": "yes"}]
    assert made(tmp_path / "1", rows, CLASSES).train.labels == ("no", "yes")
    chosen = made(tmp_path / "2", rows, LabelSpec(("labelled",), "classes", ("yes", "no", "never")))
    assert chosen.train.labels == ("yes", "no", "never")
    assert [marked(chosen, row)[-1][1] for row in (0, 1)] == ["no", "yes"]
    numbers = [{"text": str(k), "label": k} for k in (10, 9, 1)]
    assert made(tmp_path / "3", numbers, CLASSES).train.labels == ("1", "9", "10")
    named = made(tmp_path / "4", [{"text": "a", "label": 1}], LabelSpec(("labelled",), "classes", ("no", "yes")))
    assert marked(named, 0)[-1][1] == "yes"


def test_a_sequence_is_marked_at_its_last_token_that_is_no_padding(tmp_path: Path) -> None:
    rows = [{"sentence1": "How are you", "sentence2": "I am fine</s>", "label": 0.5}]
    corpus = made(tmp_path, rows, VALUES, tokenizer(pad_token="</s>"))
    (document,) = corpus.train.documents(0)
    assert np.flatnonzero(~np.isnan(document.targets_t)).tolist() == [len(document.ids_t) - 1]
    assert tokenizer().decode(document.ids_t.tolist()) == "How are youI am fine"
    assert document.targets_t[-1] == 0.5


def test_where_the_second_sentence_begins_is_kept_for_models_that_number_them(tmp_path: Path) -> None:
    using = tokenizer()
    using.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    rows = [{"sentence1": "How are you", "sentence2": "I am fine", "label": 1}, {"sentence": "How", "label": 0}]
    corpus = made(tmp_path, rows, CLASSES, using)
    (pair,), (alone,) = corpus.train.documents(0), corpus.train.documents(1)
    assert using.decode(pair.ids_t[pair.second :].tolist()) == "I am fine"
    assert alone.second == 0
    assert made(tmp_path, rows, CLASSES).train.documents(0)[0].second == 0


SIDES: dict[str, Row] = {
    "texts": {"prompt": "How are you", "chosen": " I am fine", "rejected": " no"},
    "messages": {
        "prompt": [{"role": "user", "content": "How are you"}],
        "chosen": [{"role": "assistant", "content": "I am fine"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    },
    "whole conversations": {
        "chosen": [{"role": "user", "content": "How are you"}, {"role": "assistant", "content": "I am fine"}],
        "rejected": [{"role": "user", "content": "How are you"}, {"role": "assistant", "content": "no"}],
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "How are you"}],
        "chosen": {"from": "gpt", "value": "I am fine"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    "messages behind a system's": {
        "system": "Be brief.",
        "prompt": [{"role": "user", "content": "How are you"}],
        "chosen": [{"role": "assistant", "content": "I am fine"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    },
}


@pytest.mark.parametrize("kind", SIDES)
def test_a_pair_is_two_documents_each_marked_at_its_end(tmp_path: Path, kind: str) -> None:
    corpus = made(tmp_path, [SIDES[kind]], PAIRS)
    chosen, rejected = corpus.train.documents(0)
    assert [document.targets_t[-1] for document in (chosen, rejected)] == [1.0, 0.0]
    assert [document.learned for document in (chosen, rejected)] == [1, 1]
    texts = [tokenizer().decode(document.ids_t.tolist()) for document in (chosen, rejected)]
    assert all("How are you" in text for text in texts)
    assert "I am fine" in texts[0]
    assert "I am fine" not in texts[1]


@pytest.mark.parametrize("kind", SIDES)
@pytest.mark.parametrize("pads_with_the_end", [False, True])
def test_evaluation_reads_a_pair_as_training_does(tmp_path: Path, kind: str, pads_with_the_end: bool) -> None:
    words = tokenizer()
    if pads_with_the_end:
        words.pad_token = words.eos_token
    documents = made(tmp_path, [SIDES[kind]], PAIRS, words).train.documents(0)
    prompter = Prompter(words, words.chat_template, False, None, 1, 0, (), "reward", {0: "LABEL_0"})
    pair = reward_model.load(raw_row.Row("rows.jsonl", 1, SIDES[kind]))
    asked = [request.prefix_ids for request in reward_model.ask(pair, prompter)]
    assert asked == [tuple(document.ids_t.tolist()) for document in documents]
    assert (asked[0][-1] == words.eos_token_id) == (not pads_with_the_end)


SAID = [{"role": "assistant", "content": "b"}]
REFUSED: dict[str, tuple[Row, LabelSpec, str]] = {
    "unknown label": ({"sentence": "a", "label": "maybe"}, ONE_CLASS, "unknown label: 'maybe'"),
    "number beyond": ({"sentence": "a", "label": 7}, ONE_CLASS, "unknown label: 7"),
    "no label": ({"sentence": "a"}, CLASSES, "field `label` is missing"),
    "label of a strange type": ({"sentence": "a", "label": [1]}, CLASSES, "label is a list"),
    "no number": ({"sentence": "a", "label": "much"}, VALUES, "label is not a number: 'much'"),
    "not finite": ({"sentence": "a", "label": "nan"}, VALUES, "label is not a number: nan"),
    "too large": ({"sentence": "a", "label": 1e300}, VALUES, "label is too large: 1e+300, the limit is 1e+15"),
    "empty text": ({"sentence": " ", "label": "a"}, CLASSES, "is empty"),
    "lengths": ({"tokens": ["a", "b"], "tags": ["O"]}, TAGS, "length mismatch: 2 tokens and 1 tags"),
    "empty sentence": ({"tokens": [], "tags": []}, TAGS, "empty sentence"),
    "unknown tag": ({"tokens": ["a"], "tags": ["X-a"]}, TAGS, "unknown tag: tag 0 (from 0) is 'X-a'"),
    "tag that the recipe lacks": ({"tokens": ["a"], "tags": ["B-a"]}, ONE_TAG, "unknown tag: 'B-a'"),
    "numbers without names": ({"tokens": ["a"], "tags": [0]}, TAGS, "tags are numbers; give their names"),
    "text and messages": ({"prompt": "a", "chosen": SAID, "rejected": []}, PAIRS, "prompt is text, and not"),
    "same sides": ({"chosen": "a", "rejected": "a"}, PAIRS, "are the same"),
    "mixed sides": ({"chosen": "a", "rejected": SAID}, PAIRS, "differ in kind"),
    "long side": ({"chosen": "a" * 99, "rejected": "b"}, PAIRS, "longer than data.max_length_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    row, label_spec, reason = REFUSED[name]
    with pytest.raises(UserError) as refused:
        made(tmp_path, [row], label_spec)
    message = str(refused.value)
    assert "rows.jsonl:1: " in message or "in every row (1 row)" in message
    assert reason in message


def test_a_label_of_the_validation_data_alone_is_refused(tmp_path: Path) -> None:
    known = write_jsonl(tmp_path / "known.jsonl", [{"sentence": "a", "label": "no"}, {"sentence": "b", "label": "yes"}])
    other = write_jsonl(
        tmp_path / "other.jsonl", [{"sentence": "c", "label": "no"}, {"sentence": "d", "label": "maybe"}]
    )
    sources = [SourceConfig(str(path), "labelled") for path in (known, other)]
    config = recipe(tmp_path / "cache", sources[0], validation=[sources[1]])
    with pytest.raises(UserError, match=r"other\.jsonl:2: label 'maybe' is not in the training data"):
        prepare(config, tokenizer(), 0, Solo(), CLASSES)


@pytest.mark.parametrize("label", [1, "1", 1.0, "1.0"])
def test_a_label_is_the_same_class_in_every_file_type_and_in_evaluation(tmp_path: Path, label: Any) -> None:
    """CSV has text alone, and pandas writes whole numbers as 1.0. Stars are names, other numbers are places."""
    rows = [{"sentence": "a", "label": label}, {"sentence": "b", "label": 5}]
    expected = {(): "1", ("1", "5"): "1", ("0", "1", "5"): "1", ("no", "yes", *"abcd"): "yes"}
    for number, (names, name) in enumerate(expected.items()):
        corpus = made(tmp_path / str(number), rows, LabelSpec(("labelled",), "classes", names))
        assert marked(corpus, 0)[-1][1] == name
        classes = Prompter(tokenizer(), None, False, None, 1, 0, (), "m", dict(enumerate(corpus.train.labels)))
        item = sequence_classification.load(raw_row.Row("f", 1, rows[0]))
        assert sequence_classification.bind(item, classes).label_index == corpus.train.labels.index(name)
    with pytest.raises(UserError, match=r"unknown label: 0; head\.labels has 1, 2"):
        made(tmp_path, [{"sentence": "a", "label": 0}], LabelSpec(("labelled",), "classes", ("1", "2")))


def test_entities_that_begin_with_i_are_told(tmp_path: Path) -> None:
    row = {"tokens": list("abcd"), "tags": ["I-x", "I-x", "O", "I-y"]}
    corpus = made(tmp_path, [row], TAGS)
    assert any("2 entities begin with I- or E-" in line for line in corpus.lines)
    assert [gold for _, gold in marked(corpus, 0)] == row["tags"]


def test_label_words_are_learned_as_evaluation_asks_for_them(tmp_path: Path) -> None:
    """The same tokens as `Prompter.choices`, and the end of the answer."""
    from zerotune.data.labelled import label_prompt
    from zerotune.inference.prompt import Prompter

    using = tokenizer(bos=True)
    row = {"sentence1": "How are you", "sentence2": "I am fine", "label": "not equivalent"}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    config = recipe(tmp_path / "cache", SourceConfig(str(path), "labelled"))
    corpus = prepare(config, using, 0, Solo())
    ids_t, labels_t = corpus.train.tokens(0)
    prompter = Prompter(using, None, False, None, 8, 0, (), "tiny")
    prefix, (label,) = prompter.choices(label_prompt(["How are you", "I am fine"]), ["not equivalent"])
    assert tuple(ids_t.tolist()) == (*prefix, *label, using.eos_token_id)
    assert np.flatnonzero(labels_t != -100).tolist() == list(range(len(prefix), len(ids_t)))


def test_more_processes_and_bad_rows_left_out_change_no_label_number(tmp_path: Path) -> None:
    rows: list[Row] = [{"sentence": f"text {k}", "label": f"class {(k * 7) % 5}"} for k in range(3000)]
    rows[5] = {"sentence": "x", "label": None}
    options = {"on_bad_row": "skip"}
    one = made(tmp_path / "one", rows, CLASSES, workers=1, **options)
    two = made(tmp_path / "two", rows, CLASSES, workers=2, **options)
    assert one.train.digest == two.train.digest
    assert one.train.labels == tuple(f"class {k}" for k in range(5))
    kept = [row for row in rows if row["label"]]
    assert [one.train.labels[int(one.train.label_values(k)[1][0])] for k in range(len(kept))] == [
        r["label"] for r in kept
    ]


def test_classes_of_the_hub_stand_as_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub cannot be reached from tests: a real data set with its features stands in for what it would give."""
    import datasets

    tags = datasets.List(datasets.ClassLabel(names=["O", "B-x"]))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": tags})
    table = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[1, 0]]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: table)
    config = recipe(tmp_path / "cache", SourceConfig("someone/entities", "tagged"))
    corpus = prepare(config, tokenizer(), 0, Solo(), TAGS)
    assert corpus.train.labels == ("O", "B-x")
    assert [gold for _, gold in marked(corpus, 0)] == ["B-x", "O"]
