"""The example data and the stand-in model: what their scripts make is what lies there, and what the demo needs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def script(name: str) -> ModuleType:
    """A module of examples/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (EXAMPLES / "data" / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "folder"), [("make_data", "data"), ("make_tiny_model", "models/tiny-qwen2")])
def test_the_same_files_come_out_again(name: str, folder: str) -> None:
    made = script(name).files()
    kept = {
        path.name: path.read_text(encoding="utf-8") for path in (EXAMPLES / folder).iterdir() if path.suffix != ".md"
    }
    assert set(made) == set(kept)
    for file, text in made.items():
        assert kept[file] == text, f"{file} is not what examples/{name}.py makes"


def test_demo_messages_are_held_out_exactly() -> None:
    train, heldout = rows("demo_train.jsonl"), rows("demo_heldout.jsonl")
    questions = [row["question"] for row in train + heldout]
    assert len(set(questions)) == len(questions)
    for part in (train, heldout):
        chinese = [row for row in part if row["answer"].startswith("主题")]
        english = [row for row in part if row["answer"].startswith("topic")]
        assert len(chinese) + len(english) == len(part)
        assert min(len(chinese), len(english)) >= 20


def test_heldout_questions_are_not_among_the_others() -> None:
    heldout = rows("qa_heldout.jsonl")
    assert not {row["question"] for row in heldout} & {row["question"] for row in rows("qa.jsonl")}
    assert [[row["subset"] for row in heldout].count(subset) for subset in ("factual", "reasoning")] == [10, 19]


def test_heldout_stories_are_not_in_the_corpus() -> None:
    corpus = {row["text"] for row in rows("corpus.jsonl")}
    heldout = [row["text"] for row in rows("corpus_heldout.jsonl")]
    assert len(corpus) == 150
    assert len(heldout) == 50
    assert not corpus & set(heldout)
    assert (EXAMPLES / "data" / "corpus.txt").read_text(encoding="utf-8") == "\n\n".join(heldout) + "\n"


def test_the_tiny_tokenizer_reads_and_writes_both_languages(tiny_qwen2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    for text in ("The kettle isn't here: 3.5 km!", "主题=退款；商品=水壶；紧急=高", "🙂\n\ttab é"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    talk = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "Hello."}]
    encoded = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    learned = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(learned) == "Hello.<|im_end|>"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
