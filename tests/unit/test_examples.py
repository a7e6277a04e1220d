"""The example data and the stand-in model: what their scripts make is what lies there, and what the demo needs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from zerotune.data.numbers_in_text import find_numbers, numbered

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


numbers = script("make_numbers")
Sets = dict[str, list[dict[str, str]]]
PUBLISHED = ("train", "plain", "extreme", "boundary")


def values_of(text: str) -> list[float]:
    """The numbers of a text, as training reads them."""
    return [number.value for number in find_numbers(text)]


@pytest.mark.parametrize(
    ("names", "folder"), [(("make_data", "make_numbers"), "data"), (("make_tiny_model",), "models/tiny-qwen2")]
)
def test_the_same_files_come_out_again(names: tuple[str, ...], folder: str) -> None:
    made = {file: text for name in names for file, text in script(name).files().items()}
    kept = {
        path.name: path.read_text(encoding="utf-8") for path in (EXAMPLES / folder).iterdir() if path.suffix != ".md"
    }
    assert set(made) == set(kept)
    for file, text in made.items():
        assert kept[file] == text, f"{file} is not what examples/{names} make"


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


class TestNumbers:
    """The sets of examples/make_numbers.py, as a user writes them."""

    @pytest.fixture(scope="class")
    def sets(self, tmp_path_factory: pytest.TempPathFactory) -> Sets:
        folder = tmp_path_factory.mktemp("numbers")
        numbers.write(folder, 150)
        return {
            path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for path in folder.iterdir()
        }

    def test_sizes(self, sets: Sets) -> None:
        sizes = {name: len(made) for name, made in sets.items()}
        assert sizes == dict.fromkeys(sizes, 150) | {"train": 750, "reading_train": 3000}
        assert set(sizes) == set(numbers.SETS)

    def test_published_values(self, sets: Sets) -> None:
        """One number in each sentence."""
        values = {name: [value for (value,) in (values_of(row["text"]) for row in sets[name])] for name in PUBLISHED}
        for name in ("train", "plain"):
            assert 0 <= min(values[name]) < 5
            assert 95 < max(values[name]) <= 100
            assert sum(values[name]) / len(values[name]) == pytest.approx(50, abs=6)
        tail = [value for value in values["extreme"] if value > 100]
        assert len(tail) / 150 == pytest.approx(0.2, abs=0.08)
        assert sum(value > 200 for value in tail) / len(tail) == pytest.approx(0.5, abs=0.2)  # P(Pareto(1) > 1) = 1/2
        assert set(values["boundary"]) == {0, 1, 0.001, 0.1, 10, 100, 1000}

    def test_an_answer_repeats_a_value_of_its_question(self, sets: Sets) -> None:
        for name in ("questions", "reading", "reading_far"):
            for row in sets[name]:
                (value,) = values_of(row["answer"])
                assert value in values_of(row["question"]), row
        assert len({len(values_of(row["question"])) for row in sets["reading"]}) == 3

    def test_ranges(self, sets: Sets) -> None:
        for name, low, high in (("reading_train", 0.1, 1e4), ("reading", 0.1, 1e4), ("reading_far", 1e5, 1e6)):
            found = [value for row in sets[name] for value in values_of(row["question"])]
            assert all(low <= value <= high for value in found)
            middle = (low * high) ** 0.5
            assert sum(value < middle for value in found) / len(found) == pytest.approx(
                0.5, abs=0.12
            )  # log-uniform, besides arithmetic

    def test_arithmetic_is_right(self, sets: Sets) -> None:
        signs = set()
        for row in sets["arithmetic"]:
            a, b = values_of(row["question"])
            (answer,) = values_of(row["answer"])
            assert answer in (a + b, a - b), row
            signs.add(answer > a)
        assert signs == {True, False}

    def test_answers_in_words_have_no_number(self, sets: Sets) -> None:
        assert all(values_of(row["question"]) for row in sets["words"])
        assert not [row for row in sets["words"] if values_of(row["answer"])]
        assert [row for row in sets["words"] if any(letter.isdigit() for letter in row["answer"])], "dates"

    def test_training_and_evaluation_share_no_value_and_no_template(self, sets: Sets) -> None:
        def seen(name: str) -> tuple[set[float], set[str]]:
            texts = [row["question"] for row in sets[name]]
            sentences = {
                part for text in texts for part in re.split(r"(?<=[.?。？]) ?(?![0-9])", numbered(text)[0].text)
            }
            return {value for text in texts for value in values_of(text)}, sentences - {""}

        trained, templates = seen("reading_train")
        for name in ("reading", "reading_far", "arithmetic", "words"):
            values, sentences = seen(name)
            assert not values & trained
            assert not {re.sub("[0-9]", "", text) for text in sentences} & {re.sub("[0-9]", "", t) for t in templates}

    def test_both_languages_and_all_spellings(self, sets: Sets) -> None:
        for name in ("reading_train", "reading", "reading_far", "arithmetic", "words"):
            subsets = [row["subset"] for row in sets[name]]
            assert 0.35 < subsets.count("zh") / len(subsets) < 0.65
            assert all((row["subset"] == "zh") == bool(re.search("[一-鿿]", row["answer"])) for row in sets[name])
        texts = "\n".join(row["question"] for row in sets["reading_train"])
        for spelling in (r"\$[0-9]", "[0-9]V", "[0-9]°C", "[0-9] km", "[0-9]米", "[0-9],[0-9]{3}", r"[0-9]\.[0-9]{2}"):
            assert re.search(spelling, texts)

    def test_a_larger_set_begins_with_a_smaller_one(self) -> None:
        assert numbers.content("reading", 20).startswith(numbers.content("reading", 10))


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
