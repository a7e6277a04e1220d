"""Label tasks: scores equal to scikit-learn's and seqeval's, rows and their errors, requests and hand-made answers."""

from __future__ import annotations

import itertools
import json
import math
import time
import unicodedata
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from seqeval import metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities
from sklearn import metrics as sklearn
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, LlamaForCausalLM

from eval.compare import compare
from eval.config import parse
from eval.distributed import Ranks
from eval.estimates import value
from eval.evaluation import evaluate
from eval.metrics.entities import Counts, count_by_type, entities
from eval.metrics.first_label import first_label
from eval.metrics.labels import UNREADABLE, macro_f1, mcc, pearson, rmse
from eval.protocols import Sample
from eval.run_task import prepare
from eval.subsample import take_subsample
from eval.task_rows import read_items
from eval.tasks import TASKS
from eval.tasks.token_classification import Sentence
from tests.support import eval_checkpoints
from zerotune.common.errors import UserError
from zerotune.data.labelled import label_prompt
from zerotune.data.raw_row import Row
from zerotune.data.rows import load
from zerotune.data.tagged import KNOWN_TAGS
from zerotune.data.word_windows import Words, as_written
from zerotune.inference.batch_size import Budget
from zerotune.inference.checkpoint import Checkpoint
from zerotune.inference.classifiers import SequenceClassifier
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Answer, Classified, Classify, Generate, Generated, Score, Scored, Tag, Tagged

TYPES = ("protein", "DNA", "cell-line")
TAGS = ("O", *(f"{mark}-{name}" for mark in "BIES" for name in TYPES))
NAMES = dict(enumerate(("O", "B-protein", "I-protein", "B-DNA", "I-DNA")))


tokenizer = cache(eval_checkpoints.tokenizer)


def prompter(labels: dict[int, str] | None = None, **changes: Any) -> Prompter:
    settings = {
        "template": None,
        "raw": False,
        "context_tokens": 128,
        "max_new_tokens": 10,
        "window_tokens": 0,
        "end_ids": (),
        "name": "tiny",
    }
    return Prompter(tokenizer(), labels=labels or {}, **(settings | changes))


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def items(task: str, file: str) -> list[Any]:
    return read_items(TASKS[task], parse(["--model", "M", "--tasks", task, "--data", file, "--out", "O"]))


def metrics(task: str, samples: list[Sample]) -> dict[str, float]:
    columns = {name: np.array([sample.values[name] for sample in samples]) for name in samples[0].values}
    return {metric.name: value(metric, columns) for metric in TASKS[task].metrics}


# Scores


def tag_pairs(marks: str) -> st.SearchStrategy[list[list[tuple[str, str]]]]:
    """Sentences of (gold, predicted) tags, any order of marks: most are broken in one way or another."""
    tags = st.sampled_from(("O", *(f"{mark}-{name}" for mark in marks for name in TYPES)))
    pair = st.one_of(st.tuples(tags, tags), tags.map(lambda tag: (tag, tag)))  # enough that are right
    return st.lists(st.lists(pair, min_size=1, max_size=12), min_size=1, max_size=6)


@settings(deadline=None)  # seqeval's report is slow on a busy machine
@given(sentences=st.one_of(tag_pairs("BI"), tag_pairs("I"), tag_pairs("BIES")))
def test_entities_are_scored_as_seqeval_scores_them(sentences: list[list[tuple[str, str]]]) -> None:
    gold, said = ([[pair[k] for pair in sentence] for sentence in sentences] for k in (0, 1))
    ours = [tagged_sample(*tags) for tags in zip(gold, said, strict=True)]
    for tags in (*gold, *said):
        assert entities(tags) == get_entities(tags)
    found = metrics("token_classification", ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = seqeval.classification_report(gold, said, output_dict=True, zero_division=0)
        assert found["precision"] == pytest.approx(seqeval.precision_score(gold, said, zero_division=0))
        assert found["recall"] == pytest.approx(seqeval.recall_score(gold, said, zero_division=0))
        assert found["f1"] == pytest.approx(seqeval.f1_score(gold, said, zero_division=0))
        assert found["token_accuracy"] == pytest.approx(seqeval.accuracy_score(gold, said))
    (table,) = TASKS["token_classification"].tables(ours)
    for name, support, *numbers in table.rows:
        theirs = report.pop(name)
        assert numbers[:3] == pytest.approx([theirs[key] for key in ("precision", "recall", "f1-score")])
        assert support == theirs["support"]
    assert not set(report) & set(TYPES)


def tagged_sample(gold: list[str], said: list[str]) -> Sample:
    """As the task scores a sentence of one-token words."""
    places = tuple((0, place) for place in range(len(gold)))
    sentence = Sentence("f:1", ("w",) * len(gold), tuple(gold), labels=TAGS, places=places)
    return TASKS["token_classification"].score(sentence, [Tagged(tuple(TAGS.index(tag) for tag in said))])


def test_a_sentence_by_hand() -> None:
    """DNA is found and one word too long; protein right; the stray I- at the end begins an entity of its own."""
    gold = ["B-DNA", "I-DNA", "O", "B-protein", "O", "O"]
    said = ["B-DNA", "I-DNA", "I-DNA", "B-protein", "O", "I-DNA"]
    assert entities(said) == [("DNA", 0, 2), ("protein", 3, 3), ("DNA", 5, 5)]
    assert count_by_type(gold, said) == {"DNA": Counts(0, 2, 1), "protein": Counts(1, 1, 1)}
    found = metrics("token_classification", [tagged_sample(gold, said)])
    assert found == pytest.approx({"precision": 1 / 3, "recall": 1 / 2, "f1": 0.4, "token_accuracy": 4 / 6})


def test_f1_is_over_all_sentences_and_not_a_mean() -> None:
    right = tagged_sample(["B-DNA"] * 3, ["B-DNA"] * 3)
    wrong = tagged_sample(["B-DNA", "O"], ["O", "O"])
    assert metrics("token_classification", [right, wrong])["f1"] == pytest.approx(6 / 7)


@pytest.mark.parametrize(
    ("iob1", "iob2", "iobes"),
    [
        (["I-X", "I-X", "B-X", "O", "I-Y"], ["B-X", "I-X", "B-X", "O", "B-Y"], ["B-X", "E-X", "S-X", "O", "S-Y"]),
        (["I-X", "I-Y", "I-Y", "I-Y"], ["B-X", "B-Y", "I-Y", "I-Y"], ["S-X", "B-Y", "I-Y", "E-Y"]),
    ],
)
def test_all_schemes_mean_the_same(iob1: list[str], iob2: list[str], iobes: list[str]) -> None:
    assert entities(iob1) == entities(iob2) == entities(iobes)


codes = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30)


@settings(deadline=None)
@given(rows=codes)
def test_label_scores_equal_scikit_learn(rows: list[tuple[int, int]]) -> None:
    gold, said = map(list, zip(*rows, strict=True))
    columns = {"gold": np.array(gold, float), "predicted": np.array(said, float)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert macro_f1(columns) == pytest.approx(sklearn.f1_score(gold, said, average="macro"))
        assert mcc(columns) == pytest.approx(sklearn.matthews_corrcoef(gold, said))


@settings(deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=30))
def test_an_unreadable_answer_is_no_label_but_costs_recall(rows: list[tuple[int, int]]) -> None:
    gold, said = map(list, zip(*rows, strict=True))
    labels = sorted({*gold, *said} - {UNREADABLE})
    expected = sklearn.f1_score(gold, said, labels=labels, average="macro", zero_division=0)
    assert macro_f1({"gold": np.array(gold, float), "predicted": np.array(said, float)}) == pytest.approx(expected)


def test_values_are_scored_as_scipy_and_scikit_learn_score_them() -> None:
    draw = np.random.default_rng(0)
    gold = draw.normal(size=40)
    columns = {"gold": gold, "predicted": gold + draw.normal(size=40)}
    assert pearson(columns) == pytest.approx(stats.pearsonr(gold, columns["predicted"]).statistic)
    assert rmse(columns) == pytest.approx(sklearn.root_mean_squared_error(gold, columns["predicted"]))
    assert pearson({"gold": gold, "predicted": np.full(40, 0.1)}) == 0.0


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" neutral", 0),
        ("Neutral.", 0),
        ("\n not equivalent\nsentence: more", 2),
        ("not at all", 1),
        ("neutrality", UNREADABLE),
        ("it is neutral", UNREADABLE),
        ("", UNREADABLE),
    ],
)
def test_the_label_with_which_an_answer_begins(text: str, label: int) -> None:
    assert first_label(text, ("neutral", "not", "not equivalent")) == label


LABELS = {
    "zh": ("好评", "差评"),
    "one": ("好", "坏", "好评"),
    "ja": ("良い", "悪い"),
    "th": ("ดี", "ไม่ดี"),
    "ko": ("긍정", "부정"),
    "ru": ("положительный", "отрицательный"),
    "ar": ("إيجابي", "سلبي"),
    "en": ("positive", "negative", "very positive"),
    "nu": ("1", "10", "-1", "1.5"),
    "pu": ("C", "C++", "N/A", "+", "-"),
    "ca": ("Yes", "yes!", "no"),
    "ab": ("A", "B"),
}


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("zh", " 好评。因为干净", "好评"),
        ("zh", "好评", "好评"),
        ("zh", "好评因为干净", "好评"),
        ("zh", "**差评**", "差评"),
        ("zh", "“差评”", "差评"),
        ("zh", "标签：差评", "差评"),
        ("zh", "答案是好评。", "好评"),
        ("zh", "好 评", "好评"),
        ("zh", "不是好评", None),
        ("zh", "非好评", None),
        ("zh", "好评或差评", None),
        ("zh", "好评/差评", None),
        ("zh", "好评、差评都有", None),
        ("zh", "这是好评", None),
        ("zh", "好评，不是差评", "好评"),
        ("one", "好评如下", "好评"),
        ("one", "好。", "好"),
        ("one", "好像是坏", None),
        ("one", "坏", "坏"),
        ("ja", "良いです。", "良い"),
        ("ja", "良い。料理が", "良い"),
        ("ja", "良いとは言えない", None),
        ("ja", "良くない", None),
        ("th", "ดี", "ดี"),
        ("th", "ดี เพราะสะอาด", "ดี"),
        ("th", "ดีเพราะสะอาด", "ดี"),
        ("th", "ไม่ดี", "ไม่ดี"),
        ("th", "ดีใจ", None),
        ("ko", "긍정입니다", "긍정"),
        ("ko", "긍정적", None),
        ("ko", "긍정. 깨끗해서", "긍정"),
        ("ru", "Положительный, потому что", "положительный"),
        ("ru", "положительныйх", None),
        ("ar", "إيجابي لأن", "إيجابي"),
        ("en", "Label: Positive.", "positive"),
        ("en", "The answer is negative", "negative"),
        ("en", "very positive!", "very positive"),
        ("en", "positive or negative", None),
        ("en", "positive, not negative", "positive"),
        ("en", "not positive", None),
        ("en", "positively", None),
        ("en", "ＰＯＳＩＴＩＶＥ", "positive"),
        ("nu", " 10", "10"),
        ("nu", "1.", "1"),
        ("nu", "1分", "1"),
        ("nu", "-1", "-1"),
        ("nu", "１０", "10"),
        ("nu", "1.5", "1.5"),
        ("nu", "1.7", None),
        ("nu", "100", None),
        ("nu", "1, 10", None),
        ("pu", "C++", "C++"),
        ("pu", "C.", "C"),
        ("pu", "N/A", "N/A"),
        ("pu", "-", "-"),
        ("pu", "+", "+"),
        ("ca", "Yes", "Yes"),
        ("ca", "yes!", "yes!"),
        ("ca", "YES", None),
        ("ab", "A. 好", "A"),
        ("ab", "Ｂ", "B"),
    ],
)
def test_labels_of_every_script(name: str, text: str, label: str | None) -> None:
    found = first_label(text, LABELS[name])
    assert (None if found == UNREADABLE else LABELS[name][found]) == label


EVERY_LABEL = [(name, label) for name, own in LABELS.items() for label in own]


@settings(deadline=None)  # jieba loads its words once
@given(st.sampled_from(EVERY_LABEL), st.sampled_from(["", "\nso", " \n"]))
def test_every_label_is_read_in_every_width_and_unicode_form(chosen: tuple[str, str], after: str) -> None:
    name, label = chosen
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in label)
    for form in ("NFC", "NFD", "NFKC"):
        assert LABELS[name][first_label(f" {unicodedata.normalize(form, label)}{after}", LABELS[name])] == label
    assert name == "ca" or LABELS[name][first_label(wide + after, LABELS[name])] == label


@pytest.mark.parametrize("piece", ["好评", "好", "positive ", "a", "ดี", "e\u0301", "\u0301", "，", "1"])
def test_labels_are_read_in_time(piece: str) -> None:
    first_label("好评因为", LABELS["zh"])  # loads jieba
    start = time.process_time()
    for labels in LABELS.values():
        first_label(piece * (100_000 // len(piece)), labels)
    assert time.process_time() - start < 5


def test_a_label_that_begins_another_is_scored_with_its_end(tmp_path: Path) -> None:
    """The sums are those of a plain loop; no label gains from being shorter."""
    checkpoint = eval_checkpoints.save(tmp_path / "model", context_tokens=512)
    rows = [
        {"sentence": f"Q{k} 好", "label": label} for k, label in enumerate(("sports", "sports betting", "好", "好评"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--model", str(checkpoint), "--tasks", "classification", "--data", str(tmp_path / "rows.jsonl")]
    found = evaluate(parse([*words, "--precision", "fp32"]), Ranks(0, 1, torch.device("cpu")))
    network, encode = LlamaForCausalLM.from_pretrained(checkpoint).eval(), eval_checkpoints.tokenizer()
    labels = sorted(row["label"] for row in rows)
    for row, sample in zip(rows, found.samples["classification"]["model"], strict=True):
        context = label_prompt((row["sentence"],))
        prefix = encode(context.rstrip(), add_special_tokens=False)["input_ids"]
        sums = []
        for label in labels:
            ids = [*encode(context + label, add_special_tokens=False)["input_ids"], encode.eos_token_id]
            sums.append(float(eval_checkpoints.log_probs(network, ids)[len(prefix) - 1 :].sum()))
        assert sample.shown["answer"] == labels[sums.index(max(sums))]
        assert [sample.shown["log_probs"][label] for label in labels] == pytest.approx(sums, abs=1e-4)


@pytest.mark.parametrize(("pair", "ends"), [(("good", "bad"), False), (("good", "goods"), True)])
def test_only_labels_that_begin_one_another_are_scored_with_their_end(pair: tuple[str, str], ends: bool) -> None:
    task, words = TASKS["classification"], prompter(NAMES)
    items = task.arrange(load([Row("f", k, {"text": "t", "label": x}) for k, x in enumerate(pair)], task.load))
    requests = [request for request in task.ask(items[0], words) if isinstance(request, Score)]
    assert [request.continuation_ids[-1] == words.tokenizer.eos_token_id for request in requests] == [ends] * 2


def test_a_tokenizer_without_an_end_refuses_labels_that_begin_another() -> None:
    task, words = TASKS["classification"], prompter(NAMES)
    words.tokenizer = eval_checkpoints.tokenizer()
    words.tokenizer.eos_token = None
    items = task.arrange(load([Row("f", k, {"text": "t", "label": x}) for k, x in enumerate(("a", "ab"))], task.load))
    with pytest.raises(UserError, match=r"'a' is the start of 'ab'.*has no end token"):
        task.ask(items[0], words)


def test_classes_called_by_other_numbers_have_labels_that_are_names() -> None:
    task = TASKS["sequence_classification"]
    one, none = load([Row("f", 3, {"text": "t", "label": label}) for label in (1, 0)], task.load)
    assert task.bind is not None
    for names, index in ({0: "1", 1: "2"}, 0), ({0: "0", 1: "1"}, 1), ({0: "neg", 1: "pos"}, 1):
        assert task.bind(one, prompter(names)).label_index == index
    with pytest.raises(UserError, match=r"f:3: .* has no class 0; its config\.json has id2label 0: 1, 1: 2"):
        task.bind(none, prompter({0: "1", 1: "2"}))


# Words and windows


@pytest.fixture
def letters_are_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the space before a word, which is a token of its own in this small vocabulary."""
    monkeypatch.setattr(Prompter, "_glues_words", False)


def test_words_become_their_sub_words() -> None:
    """A word's class is that of its first sub-word."""
    words = prompter().words(["Beijing", "is", "big"])
    pieces = tokenizer().convert_ids_to_tokens(words.ids)
    assert "".join(pieces) == "BeijingĠisĠbig"  # a byte-level tokenizer would glue them together
    assert len(pieces) > 3
    starts = [len("".join(pieces[:place])) for place in words.firsts]
    assert starts == [0, 7, 10]


def test_words_stand_as_they_are_written() -> None:
    assert as_written(["He", "said", "北", "京", "。", "OK", "", "x"]) == [
        "He",
        " said",
        " 北",
        "京",
        "。",
        " OK",
        "",
        " x",
    ]
    assert as_written([]) == []


def test_a_word_of_which_the_tokenizer_makes_nothing_keeps_its_gold_tag() -> None:
    words = prompter().words(["a", "", "b"])
    assert words.firsts == (0, None, 1)
    sentence = Sentence("f:1", ("a", "", "b"), ("O", "B-DNA", "O"), ("O",), (), tuple(words.places(None)))
    sample = TASKS["token_classification"].score(sentence, [Tagged((0, 0))])
    assert (sample.values["tokens"], sample.values["gold_entities"]) == (3, 1)


def test_a_type_that_the_checkpoint_has_not_is_refused() -> None:
    task = TASKS["token_classification"]
    (item,) = load([Row("f", 7, {"tokens": ["a", "b"], "tags": ["B-DNA", "S-RNA"]})], task.load)
    with pytest.raises(UserError, match=r"f:7: tag 1 \(from 0\) is 'S-RNA', .* it has DNA, protein"):
        task.bind(item, prompter(NAMES))
    (other,) = load([Row("f", 8, {"tokens": ["a", "b"], "tags": ["S-DNA", "O"]})], task.load)
    assert task.bind(other, prompter(NAMES)).tags == ("S-DNA", "O")  # another scheme, the same type


@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    before=st.integers(0, 1),
    after=st.integers(0, 1),
    size=st.one_of(st.none(), st.integers(3, 30)),
)
def test_windows_lose_no_word_and_give_each_the_most_context(
    lengths: list[int], before: int, after: int, size: int | None
) -> None:
    """lengths: sub-words of each word; ids are numbered, so what a window shows is known."""
    ends = list(itertools.accumulate(lengths))
    firsts = tuple(None if n == 0 else end - n for end, n in zip(ends, lengths, strict=True))
    total = ends[-1]
    owners = tuple(word for word, n in enumerate(lengths) for _ in range(n))
    words = Words((-1,) * before, tuple(range(total)), (-2,) * after, owners, len(lengths))
    windows, places = words.windows(size), words.places(size)
    assert all(len(window) <= (size or math.inf) for window in windows)
    for first, place in zip(firsts, places, strict=True):
        assert (place is None) == (first is None)
        if first is not None and place is not None:
            assert windows[place[0]][place[1]] == first
            best = max(context(window, first, total) for window in windows if first in window)
            assert context(windows[place[0]], first, total) == best


def context(window: tuple[int, ...], first: int, total: int) -> float:
    """Sub-words on the poorer side of `first`; the sentence's own ends are no loss."""
    shown = [place for place in window if place >= 0]
    before = first - shown[0] if shown[0] else math.inf
    return min(before, shown[-1] - first if shown[-1] < total - 1 else math.inf)


def test_a_long_sentence_is_answered_from_all_its_windows(letters_are_tokens: None) -> None:
    """Every word is one token that names its tag: whatever the windows are, the tags come back."""
    task, vocabulary = TASKS["token_classification"], tokenizer()
    words = [chr(ord("a") + k % 26) for k in range(50)]
    tags = [("B-DNA", "I-DNA", "O")[ord(word) % 3] for word in words]
    (item,) = load([Row("f", 1, {"tokens": words, "tags": tags})], task.load)
    job = prepare(task, [item], prompter(NAMES, window_tokens=16))
    (asked,) = job.requests
    assert len(asked) > 3
    assert all(isinstance(request, Tag) and request.length <= 16 for request in asked)
    classes = {vocabulary.convert_tokens_to_ids(word): tags[k] for k, word in enumerate(words)}
    answers = [Tagged(tuple(list(NAMES.values()).index(classes[i]) for i in r.prefix_ids)) for r in asked]
    sample = task.score(job.items[0], answers)
    assert sample.shown["answer"] == " ".join(tags)
    assert sample.values["right_entities"] == sample.values["gold_entities"] > 10


def test_classes_must_be_tags() -> None:
    task = TASKS["token_classification"]
    sentence = Sentence("f:1", ("a",), ("O",))
    with pytest.raises(UserError, match=r"tiny: its class 0 is called 'LABEL_0' \(id2label in config.json\)"):
        prepare(task, [sentence], prompter({0: "LABEL_0", 1: "LABEL_1"}))


# Rows


def test_conll_files(tmp_path: Path) -> None:
    file = tmp_path / "a.iob2"
    file.write_bytes(b"-DOCSTART- -X- O O\n\n\nEU NNP B-ORG\r\nrejects VBZ O\r\n\r\nin vitro\tO\n\xc2\xa0a\tB-DNA")
    sentences = items("token_classification", str(file))
    assert [(s.id, s.tokens, s.tags) for s in sentences] == [
        (f"{file}:4", ("EU", "rejects"), ("B-ORG", "O")),
        (f"{file}:7", ("in vitro", "\xa0a"), ("O", "B-DNA")),
    ]


def test_bad_conll_lines_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.conll"
    file.write_bytes(b"a\tO\nb\nc\tO\n\nd\tU-DNA\n\n\xff\tO\n\ne\tO\n \tO\n")
    with pytest.raises(UserError) as refused:
        items("token_classification", str(file))
    assert str(refused.value).splitlines()[1:] == [
        f"{file}:1: not CoNLL: line 2 has a token and no tag",
        f"{file}:5: unknown tag: tag 0 (from 0) is 'U-DNA'; known are {KNOWN_TAGS}",
        f"{file}:7: not UTF-8: byte 0xff at column 1",
        f"{file}:9: token 1 (from 0) is empty",
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "length mismatch: 2 tokens and 1 tags; each token needs one tag"),
        ({"tokens": [], "tags": []}, "empty sentence: "),
        ({"tokens": "a b", "tags": ["O"]}, "field `tokens` is not a list: it is text"),
        ({"tokens": ["a"]}, "field `tags` is missing; its columns: tokens"),
        ({"tokens": ["a"], "tags": [3.5]}, r"unknown tag: tag 0 \(from 0\) is a number"),
        ({"tokens": ["a"], "tags": ["B-"]}, r"unknown tag: tag 0 \(from 0\) is 'B-'; known are O"),
        ({"tokens": ["a"], "tags": ["DNA"]}, r"unknown tag: tag 0 \(from 0\) is 'DNA'; known are O"),
    ],
)
def test_bad_sentences_are_refused(tmp_path: Path, row: Any, reason: str) -> None:
    file = write(tmp_path / "a.jsonl", row)
    with pytest.raises(UserError, match=rf"a.jsonl:1: {reason}"):
        items("token_classification", file)


def test_a_published_file_is_read_whole(shared_data: Path) -> None:
    file = shared_data / "jnlpba" / "test.iob2"
    sentences = items("token_classification", str(file))
    assert len(sentences) == 539
    assert sum(len(s.tokens) for s in sentences) == sum(1 for line in file.open(encoding="utf-8") if line.strip())


# Label words


MRPC = [
    {"sentence1": "A b.", "sentence2": "C d.", "label": "not equivalent"},
    {"sentence1": "E f.", "sentence2": "G h.", "label": "equivalent"},
]


def test_prompts_of_one_sentence_and_of_two() -> None:
    assert label_prompt(["Profit rose ."]) == "sentence: Profit rose . Label: "
    assert label_prompt(["A b.", "C d."]) == "sentence1: A b. sentence2: C d. Label: "


def test_every_label_of_the_data_is_asked_for(tmp_path: Path) -> None:
    """Even if only some rows are asked."""
    (item,) = take_subsample(items("classification", write(tmp_path / "a.jsonl", *MRPC)), 1, None)
    assert item.labels == ("equivalent", "not equivalent")
    task, vocabulary = TASKS["classification"], tokenizer()
    requests = task.ask(item, prompter())
    assert all(isinstance(request, Score) for request in requests)
    wholes = [vocabulary.decode(request.prefix_ids + request.continuation_ids) for request in requests]
    assert wholes == [f"sentence1: A b. sentence2: C d. Label: {label}" for label in item.labels]
    sample = task.score(item, [Scored(-2.0, 1), Scored(-1.5, 2)])
    assert sample.values == {"accuracy": 1.0, "gold": 1.0, "predicted": 1.0}
    assert task.score(item, [Scored(-1.0, 1), Scored(-1.0, 2)]).shown["answer"] == "equivalent"


def test_the_written_label_is_read(tmp_path: Path) -> None:
    task, vocabulary = TASKS["classification_generation"], tokenizer()
    asked = items("classification_generation", write(tmp_path / "a.jsonl", *MRPC))
    (request,) = task.ask(asked[0], prompter())
    assert isinstance(request, Generate)
    assert vocabulary.decode(request.prefix_ids) == "sentence1: A b. sentence2: C d. Label:"
    texts = (" Not equivalent.\n", " neither")
    samples = [task.score(item, [Generated(text)]) for item, text in zip(asked, texts, strict=True)]
    assert [sample.values["predicted"] for sample in samples] == [1.0, UNREADABLE]
    assert metrics("classification_generation", samples) == pytest.approx({"accuracy": 0.5, "macro_f1": 0.5})
    (table,) = task.tables(samples)
    assert table.rows == [("equivalent", 1, 0.0, 0.0, 0.0, 0), ("not equivalent", 1, 1.0, 1.0, 1.0, 1)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"sentence": "a", "label": 1}, "label is a number; a language model needs"),
        ({"sentence": "a", "label": " "}, "label is empty"),
        ({"sentence1": "a", "label": "x"}, "field `sentence2` is missing"),
        ({"line": "a", "label": "x"}, "field `sentence` is missing; its columns: line, label"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, row: Any, reason: str) -> None:
    file = write(tmp_path / "a.jsonl", row)
    with pytest.raises(UserError, match=rf"a.jsonl:1: {reason}"):
        items("classification", file)


def test_one_label_is_no_choice(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"sentence": "a", "label": "x"})
    with pytest.raises(UserError, match="all rows have the label 'x'"):
        items("classification", file)


# Classification heads


def test_classes_by_name_and_by_number(tmp_path: Path) -> None:
    task = TASKS["sequence_classification"]
    rows = [{"text": "Beijing.", "label": label} for label in ("good", 1, "1")]
    own = prompter({0: "bad", 1: "good"})
    job = prepare(task, items(task.name, write(tmp_path / "a.jsonl", *rows)), own)
    assert job.requests[0] == [Classify(tuple(tokenizer()("Beijing.")["input_ids"]))]
    answers: list[list[Answer]] = [[Classified((0.0, 1.0))], [Classified((0.5, 1.0))], [Classified((0.3, -1.0))]]
    samples = [task.score(item, answer) for item, answer in zip(job.items, answers, strict=True)]
    assert [sample.values["gold"] for sample in samples] == [1.0, 1.0, 1.0]
    assert [sample.shown["answer"] for sample in samples] == ["good", "good", "bad"]
    assert metrics(task.name, samples) == pytest.approx({"accuracy": 2 / 3, "macro_f1": 0.4, "mcc": 0.0})


@pytest.mark.parametrize("label", ["fine", 2, -1, "2"])
def test_a_class_that_the_checkpoint_has_not(tmp_path: Path, label: Any) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "a", "label": label})
    task = TASKS["sequence_classification"]
    with pytest.raises(UserError, match=rf"a.jsonl:1: tiny has no class {label!r}; .* 0: bad, 1: good"):
        prepare(task, items(task.name, file), prompter({0: "bad", 1: "good"}))


def test_a_value(tmp_path: Path) -> None:
    task = TASKS["regression"]
    file = tmp_path / "a.csv"
    file.write_text("sentence1,sentence2,label\na,b,1.5\nc,d,-2\n", encoding="utf-8")
    job = prepare(task, items(task.name, str(file)), prompter({0: "LABEL_0"}))
    samples = [task.score(item, [Classified((out,))]) for item, out in zip(job.items, (1.0, -2.0), strict=True)]
    assert metrics(task.name, samples) == pytest.approx({"pearson": 1.0, "rmse": math.sqrt(0.125)})


def test_the_head_must_fit_the_task(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "a", "label": 1})
    with pytest.raises(UserError, match="its head has one output, not classes; use the task regression"):
        prepare(TASKS["sequence_classification"], items("sequence_classification", file), prompter({0: "x"}))
    with pytest.raises(UserError, match="its head has 2 classes, not one output; use sequence_classification"):
        prepare(TASKS["regression"], items("regression", file), prompter({0: "x", 1: "y"}))


@pytest.mark.parametrize("label", ["many", True, None, float("nan")])
def test_bad_values_are_refused(label: Any) -> None:
    with pytest.raises(UserError, match=r"f:1: .*label` is null|f:1: label is (not a number|true or false)"):
        load([Row("f", 1, {"text": "a", "label": label})], TASKS["regression"].load)


# With special tokens around the words and between two sentences


def framed() -> Any:
    """As BERT's tokenizers: <|im_start|> a <|im_end|> b <|im_end|>, the second sentence numbered."""
    made = eval_checkpoints.tokenizer()
    start, end = ((name, made.convert_tokens_to_ids(name)) for name in ("<|im_start|>", "<|im_end|>"))
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>",
        pair="<|im_start|> $A <|im_end|> $B:1 <|im_end|>:1",
        special_tokens=[start, end],
    )
    return made


def framed_prompter(**changes: Any) -> Prompter:
    settings = {"template": None, "raw": False, "context_tokens": 8, "max_new_tokens": 1, "window_tokens": 0}
    return Prompter(framed(), end_ids=(), name="tiny", **(settings | changes))


def test_special_tokens_stand_around_every_window(letters_are_tokens: None) -> None:
    vocabulary = tokenizer()
    words = framed_prompter().words(list("abcdefghij"))
    windows = [vocabulary.convert_ids_to_tokens(window) for window in words.windows(8)]
    assert windows == [["<|im_start|>", *part, "<|im_end|>"] for part in ("abcdef", "defghi", "efghij")]
    assert words.places(8) == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 3), (1, 4), (2, 4), (2, 5), (2, 6)]


def test_where_the_second_sentence_begins_is_told_to_models_that_number_them() -> None:
    made = framed_prompter()
    assert len(made.classifier_input(["a"])[0]) == 3
    ids, second = made.classifier_input(["a", "b"])
    assert second == 0
    made.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert made.classifier_input(["a"])[1] == 0
    again, second = made.classifier_input(["a", "b"])
    assert again == ids
    assert made.tokenizer.decode(ids[second]) == "b"


def test_a_model_that_numbers_sentences_gets_the_numbers_whatever_the_batch() -> None:
    """Equal to transformers' own tokenizer call for each pair alone."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, initializer_range=1.0, **sizes)).eval()
    rows = [((5, 6, 7, 8, 9, 10), 3), ((11, 12, 13), 1), ((14, 15, 16, 17), 0)]
    asked = [Classify(ids, second) for ids, second in rows]
    found = dict(SequenceClassifier(model).answers(asked, Budget(100, 100, 100)))
    for k, (ids, second) in enumerate(rows):
        numbers = torch.tensor([[int(0 < second <= place) for place in range(len(ids))]])
        alone = model(input_ids=torch.tensor([ids]), token_type_ids=numbers).logits[0]
        assert found[k].logits == pytest.approx(alone.tolist(), abs=1e-6)
        assert second == 0 or not torch.allclose(alone, model(input_ids=torch.tensor([ids])).logits[0], atol=1e-4)


def test_a_language_model_is_asked_for_labels(tmp_path: Path) -> None:
    """From the command's options to the result, with a model's own answers."""
    model = eval_checkpoints.save(tmp_path / "model")
    names = "classification,classification_generation"
    data = write(tmp_path / "a.jsonl", *MRPC, {"sentence": "Beijing", "label": "equivalent"})
    config = parse(["--model", str(model), "--tasks", names, "--data", data, "--out", "O", "--precision", "fp32"])
    found = evaluate(config, Ranks(0, 1, torch.device("cpu")))
    by_likelihood, written = (found.samples[name]["model"] for name in names.split(","))
    assert [sample.values["gold"] for sample in by_likelihood] == [1.0, 0.0, 0.0]
    assert {sample.values["predicted"] for sample in by_likelihood} <= {0.0, 1.0}
    assert all("written" in sample.shown for sample in written)
    assert [table.title for table in found.result.tasks[0].tables["model"]] == ["Labels"]


@pytest.mark.parametrize("kind", ["roberta", "camembert", "mpnet", "bert", "llama"])
def test_the_context_is_what_the_model_can_take(kind: str) -> None:
    """Some families count positions from behind the pad token's number: their context is shorter than they say."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(kind, vocab_size=50, max_position_embeddings=20, pad_token_id=1, **sizes)
    context_tokens = Checkpoint(Path("folder"), "tiny", config, None, ()).context_tokens
    assert context_tokens == (20 if kind in ("bert", "llama") else 18)
    model = AutoModel.from_config(config).eval()
    model(input_ids=torch.full((1, context_tokens), 7))
    if kind != "llama":  # rotary positions have no end
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, context_tokens + 1), 7))


@pytest.mark.parametrize(("rows", "with_entities", "right"), [(100, 3, 0), (100, 1, 1), (20, 2, 0), (6, 1, 1)])
def test_a_handful_of_entities_is_too_few_for_an_interval(rows: int, with_entities: int, right: int) -> None:
    columns = {name: np.zeros(rows) for name in ("right_entities", "predicted_entities", "gold_entities")}
    columns["gold_entities"][:with_entities] = 1.0
    columns["right_entities"][:right] = columns["predicted_entities"][:right] = 1.0
    task = TASKS["token_classification"]
    samples = [
        Sample(
            f"f:{k}",
            {name: float(column[k]) for name, column in columns.items()} | {"right_tokens": 1.0, "tokens": 1.0},
        )
        for k in range(rows)
    ]
    for metric in task.metrics:
        for estimate in compare((metric,), {"m": samples})[0].estimates:
            assert estimate.low is None
            assert estimate.reason


def test_tag_sequences_are_no_text_that_rows_can_share() -> None:
    from eval.ngram_overlap import fields

    assert fields({"tokens": ["IL-2", "binds"], "tags": ["B-protein", "O"]}) == ["IL-2 binds"]


def test_tags_that_are_numbers_are_those_of_the_checkpoints_classes() -> None:
    task = TASKS["token_classification"]
    (item,) = load([Row("f", 7, {"tokens": ["a", "b"], "tags": [0, 1]})], task.load)
    named = task.bind(item, prompter(NAMES))
    assert named.tags == (named.labels[0], named.labels[1])
    (beyond,) = load([Row("f", 8, {"tokens": ["a"], "tags": [99]})], task.load)
    with pytest.raises(UserError, match=r"f:8: has the tag 99, but .* has only"):
        task.bind(beyond, prompter(NAMES))
    with pytest.raises(UserError, match="tag 0"):
        load([Row("f", 9, {"tokens": ["a"], "tags": [True]})], task.load)
