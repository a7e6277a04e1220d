"""examples/phrasebank_clean_split.py: what it writes shares nothing, is read by `train` and `eval`, and repeats."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from eval.contamination import TrainingData, find_overlaps, texts_by_id
from eval.ngram_overlap import words
from eval.tasks import classification
from zerotune.data.file_options import DEFAULT
from zerotune.data.files import read
from zerotune.data.rows import load

ROOT = Path(__file__).resolve().parents[2]
SHARES = {"negative": 30, "neutral": 120, "positive": 50}
PASSAGE = "in the third quarter of the year the net sales of the whole group rose to a new high"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    place = ROOT / "examples" / "phrasebank_clean_split.py"
    spec = importlib.util.spec_from_file_location("phrasebank_clean_split", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Made-up sentences in ISO-8859-1, some repeated in other words' form, one pair that contradicts itself."""
    lines = [
        f"Company number {k} of Jyväskylä reported {label} news .@{label}"
        for label, count in SHARES.items()
        for k in range(count)
    ]
    lines += [f"The firm {k} said that {PASSAGE} .@positive" for k in range(5)]
    lines += [
        lines[0],
        lines[1].upper().replace("NEGATIVE", "negative"),
        "Nobody knows .@neutral",
        "nobody KNOWS@positive",
    ]
    path = tmp_path / "Sentences_50Agree.txt"
    path.write_bytes("\r\n".join(lines).encode("iso-8859-1"))
    return path


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_nothing_of_the_test_set_stands_in_the_training_set(
    script: ModuleType, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(published), "--out", str(tmp_path)]) == 0
    assert "209 rows read, 4 of them repeated or contradictory and left out" in capsys.readouterr().out
    train, test = rows(tmp_path / "clean_train.jsonl"), rows(tmp_path / "clean_test.jsonl")
    assert len(train) + len(test) == 205
    both = [" ".join(words(row["sentence"])) for row in train + test]
    assert len(set(both)) == len(both)
    assert "nobody knows" not in both
    assert not [row for row in test if PASSAGE in row["sentence"]], "sentences alike stay together"
    counts = Counter(row["label"] for row in test)
    assert (counts["negative"], counts["neutral"]) == (6, 24)
    assert counts["positive"] in range(8, 12)
    overlaps = found_by_eval(tmp_path / "clean_test.jsonl", tmp_path / "clean_train.jsonl")
    assert overlaps == (len(test), 0)


def found_by_eval(test: Path, training: Path) -> tuple[int, int]:
    """Rows of the test set, and how many of them the evaluation finds in the training data."""
    items = classification.arrange(load(read(test), classification.load))
    texts = texts_by_id(read(test), [item.id for item in items])
    overlaps = find_overlaps(TrainingData({training: DEFAULT}, ()), {"quiz": texts})
    return len(items), len(overlaps.found["quiz"])


def test_the_published_layout_is_read_directly_and_found_in_its_training_set(published: Path, tmp_path: Path) -> None:
    test = tmp_path / "Sentences_66Agree.txt"
    test.write_bytes(b"\n".join(published.read_bytes().split(b"\r\n")[:200:2]))
    assert found_by_eval(test, published) == (100, 100)


def test_the_seed_decides(script: ModuleType, published: Path, tmp_path: Path) -> None:
    texts = []
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert script.main([str(published), "--out", str(tmp_path / folder), "--seed", seed]) == 0
        texts.append((tmp_path / folder / "clean_test.jsonl").read_text(encoding="utf-8"))
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("one two@good\nthree four\n", [], "rows.txt:2: not sentence@label"),
        ("one two@good\n", ["--test_share", "1"], "--test_share 1.0: must lie between 0 and 1"),
        (None, [], "rows.txt: no such file"),
    ],
)
def test_mistakes_are_named(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    words: list[str],
    message: str,
) -> None:
    path = tmp_path / "rows.txt"
    if content is not None:
        path.write_text(content)
    assert script.main([str(path), "--out", str(tmp_path), *words]) == 64
    assert message in capsys.readouterr().err


def test_the_published_file(script: ModuleType, shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "financial_phrasebank" / "Sentences_50Agree.txt"
    assert script.main([str(file), "--out", str(tmp_path)]) == 0
    total, found = found_by_eval(tmp_path / "clean_test.jsonl", tmp_path / "clean_train.jsonl")
    assert found == 0
    assert total in range(900, 967)  # a fifth of 4,833 distinct sentences, less those that share a passage
