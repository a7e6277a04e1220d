"""Every task's own data: rows with the features that the hub's data sets have, up to the items that are asked.

The hub cannot be reached from a test, so `datasets.load_dataset` alone is stood in for; the data sets are real ones.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Image, LargeList, List, Translation, Value

from eval.config import parse
from eval.task_rows import read_items
from eval.tasks import TASKS
from zerotune.common.errors import UserError
from zerotune.data.hub import Hub, from_hub
from zerotune.data.raw_row import BadRow, Row
from zerotune.data.rows import load
from zerotune.inference.requests import Generated

TEXT = Value("string")
GLUE_PAIR = {"sentence1": TEXT, "sentence2": TEXT}
GSM8K = ({"question": TEXT, "answer": TEXT}, [{"question": f"Q{k}", "answer": f"So.\n#### {k}"} for k in range(5)])


CARD = """\
---
dataset_info:
  config_name: plain_text
  features: [{name: text, dtype: string}, {name: label, dtype: {class_label: {names: {'0': neg, '1': pos}}}}]
  splits: [{name: train, num_bytes: 1, num_examples: 1}, {name: test, num_bytes: 1, num_examples: 1}]
configs:
- config_name: plain_text
  data_files: [{split: train, path: plain_text/train-*}, {split: test, path: plain_text/test-*}]
  default: true
---
"""


@dataclass
class StandIn:
    """Gives each call of `load_dataset` the same data set, and remembers the call."""

    dataset: Dataset
    calls: list[tuple[str, str | None, Mapping[str, Any]]] = field(default_factory=list)

    def __call__(self, path: str, name: str | None = None, **options: Any) -> Dataset:
        self.calls.append((path, name, {key: value for key, value in options.items() if value is not None}))
        return self.dataset


def stand_in(monkeypatch: pytest.MonkeyPatch, features: Mapping[str, Any], rows: Sequence[Any]) -> StandIn:
    made = StandIn(Dataset.from_list(list(rows), features=Features(features)))
    monkeypatch.setattr(datasets, "load_dataset", made)
    return made


def asked(task: str) -> list[Any]:
    """The items of a command that names no file."""
    return read_items(TASKS[task], parse(["--model", "m", "--tasks", task]))


def messages(item: Any) -> list[str]:
    return [f"{message['role']}: {message['content']}" for message in item.messages]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_has_data_of_its_own(task: Any) -> None:
    assert isinstance(task.source, (Hub, tuple))
    assert task.source


def test_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = stand_in(monkeypatch, {"page": TEXT}, [{"page": " = Robert Boulter = \n He is an actor . \n"}])
    (item,) = asked("perplexity")
    assert item.text == " = Robert Boulter = \n He is an actor . \n"
    assert item.id == "hub:EleutherAI/wikitext_document_level/wikitext-2-raw-v1/test:1"
    path, name, options = hub.calls[0]
    assert (path, name) == ("EleutherAI/wikitext_document_level", None)
    assert options == {"data_files": "wikitext-2-raw-v1/wikitext-2-raw-v1-test.parquet", "split": "train"}


def test_qa(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"question": "who got the first nobel prize in physics", "answer": ["Wilhelm Conrad Röntgen", "Röntgen"]}
    hub = stand_in(monkeypatch, {"question": TEXT, "answer": List(TEXT)}, [row])
    (item,) = asked("qa")
    assert messages(item) == [
        "user: Answer with a name, a number or a few words and nothing else.\n\n"
        "who got the first nobel prize in physics?",
        "assistant: Wilhelm Conrad Röntgen",
    ]
    assert hub.calls == [("google-research-datasets/nq_open", None, {"split": "validation"})]
    sample = TASKS["qa"].score(item, [Generated("röntgen.")])
    assert sample.values == {"exact_match": 1.0, "partial_match": 1.0, "similarity": 1.0}
    assert sample.shown["reference"] == "Röntgen"
    wrong = TASKS["qa"].score(item, [Generated("Marie Curie")])
    assert wrong.values["exact_match"] == 0.0


def test_rouge(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"article": TEXT, "highlights": TEXT, "id": TEXT}
    hub = stand_in(monkeypatch, features, [{"article": "(CNN)It rained.", "highlights": "Rain .\nMuch .", "id": "f0"}])
    (item,) = asked("rouge")
    assert messages(item) == [
        "user: Summarise this article in three or four short sentences.\n\n(CNN)It rained.",
        "assistant: Rain .\nMuch .",
    ]
    assert hub.calls[0][2] == {"data_files": "3.0.0/test-*.parquet", "split": "train"}


def test_bleu(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"translation": Translation(languages=["zh", "en"])}
    hub = stand_in(monkeypatch, features, [{"translation": {"zh": "你好，世界。", "en": "Hello, world."}}])
    (item,) = asked("bleu")
    assert messages(item) == [
        "user: Translate into English and write nothing else.\n\n你好，世界。",
        "assistant: Hello, world.",
    ]
    assert hub.calls[0][2] == {"data_files": "zh-en/validation-*.parquet", "split": "train"}


def test_dialogue_takes_the_rows_that_are_dialogues(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(*said: str) -> dict[str, Any]:
        turns = [{"content": text, "role": ("user", "assistant")[k % 2]} for k, text in enumerate(said)]
        return {"prompt": said[0], "prompt_id": "0", "messages": turns}

    features = {"prompt": TEXT, "prompt_id": TEXT, "messages": List({"content": TEXT, "role": TEXT})}
    blank = row("Why?", "So.", " ", "That.")
    rows = [row("Hi", "Hello"), row("Why?", "So.", "And?", "That."), blank, row("a", *"bcde")]
    hub = stand_in(monkeypatch, features, rows)
    first, second = asked("dialogue")
    assert messages(first) == ["user: Why?", "assistant: So.", "user: And?", "assistant: That."]
    assert [item.id.rpartition(":")[2] for item in (first, second)] == ["2", "4"]
    assert hub.calls[0][2] == {"data_files": "data/test_sft-*.parquet", "split": "train"}


@pytest.mark.parametrize("task", ["classification", "classification_generation"])
def test_classification(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = {**GLUE_PAIR, "label": ClassLabel(names=["not_equivalent", "equivalent"]), "idx": Value("int32")}
    rows = [{"sentence1": "He left .", "sentence2": "He went .", "label": k, "idx": k} for k in (1, 0)]
    hub = stand_in(monkeypatch, features, rows)
    first, second = asked(task)
    assert first.sentences == ("He left .", "He went .")
    assert (first.label, second.label) == ("equivalent", "not equivalent")
    assert first.labels == ("equivalent", "not equivalent")
    assert hub.calls == [("nyu-mll/glue", "mrpc", {"split": "validation"})]


def test_token_classification(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = "Epo , c-myb mRNA of K562 cells , T lymphocytes , p50 protein , GATA-1 gene".split()
    row = {"tokens": tokens, "tags": [3, 0, 9, 10, 0, 7, 8, 0, 5, 6, 0, 3, 4, 0, 1, 2]}
    hub = stand_in(monkeypatch, {"tokens": List(TEXT), "tags": List(Value("int32"))}, [row])
    (item,) = asked("token_classification")
    assert item.tokens == tuple(tokens)
    said = "B-protein O B-RNA I-RNA O B-cell_line I-cell_line O B-cell_type I-cell_type O B-protein I-protein O B-DNA"
    assert " ".join(item.tags) == f"{said} I-DNA"
    assert hub.calls[0][2] == {
        "data_files": "bionlp2004/test/*.parquet",
        "split": "train",
        "revision": "refs/convert/parquet",
    }


def test_sequence_classification(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "I love it.", "label": 1}, {"text": "I left.", "label": 0}]
    hub = stand_in(monkeypatch, {"text": TEXT, "label": ClassLabel(names=["neg", "pos"])}, rows)
    first, second = asked("sequence_classification")
    assert (first.sentences, first.label, second.label) == (("I love it.",), "pos", "neg")
    assert hub.calls[0][2] == {"data_files": "plain_text/test-*.parquet", "split": "train"}


def test_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"sentence1": "A man sings .", "sentence2": "A man is singing .", "label": 4.75, "idx": 0}]
    hub = stand_in(monkeypatch, {**GLUE_PAIR, "label": Value("float32"), "idx": Value("int32")}, rows)
    (item,) = asked("regression")
    assert (item.sentences, item.value) == (("A man sings .", "A man is singing ."), 4.75)
    assert hub.calls == [("nyu-mll/glue", "stsb", {"split": "validation"})]


@pytest.mark.parametrize("task", ["cmmlu", "cmmlu_0shot", "cmmlu_generation"])
def test_cmmlu(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"Question": "问", "A": "甲", "B": "乙", "C": "丙", "D": "丁", "Answer": "C"}
    hub = stand_in(monkeypatch, dict.fromkeys(row, TEXT), [row] * 5)
    items = asked(task)
    assert (len(items), items[0].subject, items[0].answer) == (67 * 5, "agronomy", "C")
    assert hub.calls[0][2]["data_files"] == "agronomy/dev/*.parquet"
    assert {call[2]["revision"] for call in hub.calls} == {"refs/convert/parquet"}


@pytest.mark.parametrize("task", ["gsm8k", "gsm8k_calculator"])
def test_gsm8k(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = stand_in(monkeypatch, *GSM8K)
    items = asked(task)
    assert [(item.question, item.answer) for item in items][:2] == [("Q0", "0"), ("Q1", "1")]
    assert hub.calls == [("openai/gsm8k", "main", {"split": "test"})]


def test_numeric(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = stand_in(monkeypatch, *GSM8K)
    assert messages(asked("numeric")[1]) == ["user: Q1", "assistant: So.\n#### 1"]
    assert hub.calls == [("openai/gsm8k", "main", {"split": "test"})]


def test_gsm8k_cot(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = stand_in(monkeypatch, *GSM8K)
    items = asked("gsm8k_cot")
    assert len(items) == 5
    assert items[0].examples.startswith("Question: Q0\nAnswer: So.\n#### 0\n\nQuestion: Q1")
    assert [call[2]["split"] for call in hub.calls] == ["train[:5]", "test"]


@pytest.mark.parametrize("task", ["scienceqa", "scienceqa_generation"])
def test_scienceqa(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image as Picture

    features = {
        "image": Image(),
        "question": TEXT,
        "choices": List(TEXT),
        "answer": Value("int8"),
        **dict.fromkeys(("hint", "task", "grade", "subject", "topic"), TEXT),
    }
    words = {"hint": "", "task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "physics"}
    row = {"question": "Which?", "choices": ["a", "b"], "answer": 1, **words}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stand_in(monkeypatch, features, [{"image": Picture.new("RGB", (4, 4)), **row}, {"image": None, **row}])
    (item,) = asked(task)
    assert (item.answer, item.groups) == ("B", {"subject": "natural science", "topic": "physics"})
    assert Path(item.image).is_file()


def test_samples_needs_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = stand_in(monkeypatch, {"text": TEXT}, [{"text": "no"}])
    assert len(asked("samples")) == 5
    assert hub.calls == []


def rows_of(monkeypatch: pytest.MonkeyPatch, features: Any, rows: Sequence[Any], **source: Any) -> list[Any]:
    stand_in(monkeypatch, features, rows)
    return list(from_hub(Hub("owner/set", "test", **source)))


def test_classes_have_their_names_however_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = ClassLabel(names=["no", "yes"])
    features = {
        "one": kind,
        "many": List(kind),
        "large": LargeList(kind),
        "inside": {"kind": kind, "deep": List({"kind": kind})},
        "number": Value("int64"),
    }
    row = {"one": 1, "many": [0, 1], "large": [1], "inside": {"kind": 0, "deep": [{"kind": 1}]}, "number": 1}
    empty = {"one": -1, "many": None, "large": [None], "inside": None, "number": None}
    first, second = rows_of(monkeypatch, features, [row, empty])
    assert first.value == {
        "one": "yes",
        "many": ["no", "yes"],
        "large": ["yes"],
        "inside": {"kind": "no", "deep": [{"kind": "yes"}]},
        "number": 1,
    }
    assert second.value["one"] is None
    assert second.value["many"] is None
    assert second.value["large"] == [None]


def test_the_source_may_name_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"one": Value("int8"), "many": List(Value("int32")), "other": Value("int64")}
    classes = {"one": ("no", "yes"), "many": ("O", "B-x")}
    (row,) = rows_of(monkeypatch, features, [{"one": 1, "many": [0, 1], "other": 1}], classes=classes)
    assert row.value == {"one": "yes", "many": ["O", "B-x"], "other": 1}


def test_files_of_a_large_data_set_keep_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder that is laid out and described as the hub's are; nothing stands in for anything."""
    features = Features({"text": TEXT, "label": ClassLabel(names=["neg", "pos"])})
    (tmp_path / "plain_text").mkdir()
    for split, label in (("train", 0), ("test", 1)):
        rows = Dataset.from_list([{"text": split, "label": label}], features=features)
        rows.to_parquet(str(tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet"))
    (tmp_path / "README.md").write_text(CARD)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = TASKS["sequence_classification"].source
    assert isinstance(source, Hub)
    (row,) = from_hub(dataclasses.replace(source, path=str(tmp_path)))
    assert row.value == {"text": "test", "label": "pos"}


def test_a_row_that_lacks_a_column_is_refused_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(monkeypatch, {"page": TEXT}, [{"page": None}, {"page": "x"}], columns={"text": "page"})
    assert rows == [
        BadRow("hub:owner/set/test", 1, "text: column page is null"),
        Row("hub:owner/set/test", 2, {"text": "x"}),
    ]
    (bad,) = rows_of(monkeypatch, {"page": TEXT}, [{"page": "x"}], columns={"text": "pages"})
    with pytest.raises(UserError, match=r"hub:owner/set/test:1: text: there is no column pages; did you mean page\?"):
        load([bad], TASKS["perplexity"].load)
    (bad,) = rows_of(monkeypatch, {"page": TEXT}, [{"page": "x"}], where="pages")
    assert isinstance(bad, BadRow)
    assert bad.reason.startswith("where: 'pages' is undefined")


@pytest.mark.parametrize("said", ["Couldn't reach 'glue' on the Hub\nfor many reasons\n", ""])
def test_a_hub_out_of_reach_is_one_line(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        assert not logging.getLogger("huggingface_hub.utils").isEnabledFor(logging.WARNING)  # its retries
        raise ConnectionError(said)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError) as refused:
        asked("regression")
    first = said.partition("\n")[0] or "ConnectionError"
    assert str(refused.value) == (
        f"the data set nyu-mll/glue cannot be read from the hub ({first}); name a local copy with --data FILE"
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [([], "is an empty list"), (["a", " "], r"answer\[1\] is empty"), (["a", 3], r"answer\[1\] is not text: it is a")],
)
def test_a_list_of_answers_holds_texts(answer: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        load([Row("a.jsonl", 1, {"question": "Q?", "answer": answer})], TASKS["qa"].load)
