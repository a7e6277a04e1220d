"""Tokenizers learned from data: from the rows that are trained on, and from no others."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from tests.support.data_tools import write_jsonl
from tests.support.ranks import Solo
from train.config import DataConfig, SourceConfig, TokenizerConfig
from train.data.learn_tokenizer import LONGEST_WORD, learn_tokenizer
from train.data.prepare import prepare
from zerotune.common.errors import UserError

TREEBANK = """ no it was n't black monday
 but while the <unk> york stock exchange did n't fall apart friday as the dow plunged N points
 most of it in the final hour it barely managed to stay this side of chaos
"""


def data(tmp_path, rows=None, form="text", **options):
    path = tmp_path / ("rows.jsonl" if rows else "rows.txt")
    write_jsonl(path, rows) if rows else path.write_text(TREEBANK, encoding="utf-8")
    folder = str(tmp_path / "cache")
    return DataConfig(train=[SourceConfig(str(path), form)], cache_folder=folder, workers=1, **options)


def learn(config, data_config, seed=0):
    return learn_tokenizer(config, data_config, seed)[0]


def test_a_treebank_reads_back_as_it_was(tmp_path):
    config = data(tmp_path)
    tokenizer = learn(TokenizerConfig("word"), config)
    ids = tokenizer(TREEBANK)["input_ids"]
    assert tokenizer.decode(ids) == " <eos> ".join(line.strip() for line in TREEBANK.splitlines()) + " <eos>"
    assert tokenizer.convert_ids_to_tokens(ids).count("<unk>") == 1
    corpus = prepare(config, tokenizer, 0, Solo())
    assert corpus.train.tokens(0)[0].tolist() == ids, "the end is there once"
    assert corpus.stop_ids == (tokenizer.eos_token_id,)


def test_rare_words_are_unknown(tmp_path):
    tokenizer = learn(TokenizerConfig("word", vocabulary_size=4), data(tmp_path))
    assert sorted(tokenizer.get_vocab()) == ["<eos>", "<unk>", "it", "the"]
    assert tokenizer.decode(tokenizer("it was the")["input_ids"]) == "it <unk> the"


def test_lower_case_and_punctuation(tmp_path):
    config = data(tmp_path, [{"text": "Hello, World!\nHello <unk>"}])
    tokenizer = learn(TokenizerConfig("word", lowercase=True, split_punctuation=True), config)
    assert tokenizer.decode(tokenizer("Hello,\n<unk> world!")["input_ids"]) == "hello , <eos> <unk> world !"
    assert sorted(learn(TokenizerConfig("word"), config).get_vocab()) == ["<eos>", "<unk>", "Hello", "Hello,", "World!"]


@pytest.mark.parametrize("lowercase", [False, True])
def test_byte_pairs_read_back_any_text(tmp_path, lowercase):
    text = "Ünïcode, 人工智能 and\n\n  two  spaces <unk> 🙂"
    tokenizer = learn(TokenizerConfig("bpe", vocabulary_size=300, lowercase=lowercase), data(tmp_path))
    assert len(tokenizer) == 300
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == (text.lower() if lowercase else text)
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]).count("<unk>") == 1


@pytest.mark.parametrize("fraction", [1.0, 0.6])
def test_held_out_rows_are_not_learned_from(tmp_path, fraction):
    rows = [{"text": f"w{number} and"} for number in range(60)]
    config = data(tmp_path, rows, validation_fraction=0.3)
    config.train[0] = SourceConfig(config.train[0].path, "text", fraction=fraction)
    tokenizer = learn(TokenizerConfig("word"), config, seed=5)
    corpus = prepare(config, tokenizer, 5, Solo())
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    assert len(corpus.train) + len(corpus.validation) == len(tokenizer) - 3 + len(corpus.validation) > 20
    assert all(unknown not in corpus.train.tokens(row)[0] for row in range(len(corpus.train)))
    assert all(unknown in corpus.validation.tokens(row)[0] for row in range(len(corpus.validation)))


@pytest.mark.parametrize(
    ("form", "row", "words"),
    [
        ("qa", {"question": "who ?", "answer": "me"}, {"User:", "who", "me", "Assistant:"}),
        ("labelled", {"sentence": "rising profits", "label": "positive"}, {"rising", "positive"}),
        ("chat", {"messages": [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]}, {"why"}),
    ],
)
def test_any_row_as_it_is_written(tmp_path, form, row, words):
    config = data(tmp_path, [row, row], form)
    tokenizer = learn(TokenizerConfig("word"), config)
    assert words <= tokenizer.get_vocab().keys()
    ids = prepare(config, tokenizer, 0, Solo()).train.tokens(0)[0]
    assert tokenizer.convert_tokens_to_ids("<unk>") not in ids
    assert tokenizer.eos_token_id == ids[-1]


def test_a_stream_gives_its_first_window(tmp_path):
    rows = [{"text": f"w{number} and"} for number in range(60)]
    config = data(tmp_path, rows, streaming=True, streaming_window_rows=10)
    tokenizer, lines = learn_tokenizer(TokenizerConfig("word"), config, 0)
    assert set(tokenizer.get_vocab()) == {"<unk>", "<eos>", "and", *(f"w{number}" for number in range(10))}
    assert "the first window of the stream (10 rows)" in lines[0]


def test_equal_data_give_an_equal_tokenizer(tmp_path):
    config = data(tmp_path, [{"text": f"word{number % 7} {'人工' * (number % 3)} x"} for number in range(40)])
    for kind in ("word", "bpe"):
        made = [learn(TokenizerConfig(kind, vocabulary_size=280), config) for _ in range(2)]
        assert made[0].backend_tokenizer.to_str() == made[1].backend_tokenizer.to_str()
        made[0].save_pretrained(tmp_path / kind)
        read = AutoTokenizer.from_pretrained(tmp_path / kind)
        assert read.backend_tokenizer.to_str() == made[0].backend_tokenizer.to_str()
        assert read.eos_token == "<eos>"
        ids = read("a <unk>")["input_ids"]
        assert read.decode([*ids, read.eos_token_id], skip_special_tokens=True).endswith(" <unk>"), "as it was written"
        assert json.loads((tmp_path / kind / "tokenizer.json").read_text())["model"]["type"].lower().startswith(kind[0])


def test_words_without_spaces_are_said_aloud(tmp_path):
    chinese = [{"text": "人工智能模型需要在合并之后保持完全一致的输出，否则评估的结果就没有意义。"}] * 3
    spaced = [{"text": "人工 智能 模型 需要 在 合并 之后 保持 完全 一致 的 输出"}] * 3
    for rows, kind, warns in ((chinese, "word", True), (spaced, "word", False), (chinese, "bpe", False)):
        lines = learn_tokenizer(TokenizerConfig(kind), data(tmp_path, rows), 0)[1]
        assert any("tokenizer.kind: bpe" in line for line in lines) is warns


def test_no_word_at_all(tmp_path):
    with pytest.raises(UserError, match="no word in the training rows"):
        learn(TokenizerConfig("word"), data(tmp_path, [{"text": "<eos>"}]))


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_rows_that_cannot_be_read_are_reported_when_they_are_tokenised(tmp_path, kind):
    config = data(tmp_path, [{"text": " "}, {"text": 5}])
    tokenizer = learn(TokenizerConfig(kind), config)
    with pytest.raises(UserError, match="2 of 2 rows cannot be used"):
        prepare(config, tokenizer, 0, Solo())


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_upper_case_marks_in_a_lower_case_corpus(tmp_path, kind):
    tokenizer = learn(TokenizerConfig(kind, lowercase=True), data(tmp_path, [{"text": "the <UNK> and <EOS> the"}]))
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<eos>"]) == [0, 1]
    assert tokenizer.decode(tokenizer("the <UNK>")["input_ids"]) == "the <unk>"


def test_an_end_that_is_in_the_text_is_not_doubled(tmp_path):
    marked = "it was <eos>\nblack <eos> \n\n monday <eos>\n"
    tokenizer = learn(TokenizerConfig("word"), data(tmp_path, [{"text": marked}]))
    assert tokenizer.decode(tokenizer(marked)["input_ids"]) == " ".join(marked.split())


def test_very_long_words_do_not_become_tokens(tmp_path):
    text = "".join("ACGT"[(i * i * 7 + i // 3 * 11 + i % 5) % 4] for i in range(100_000))
    tokenizer = learn(TokenizerConfig("bpe"), data(tmp_path, [{"text": text}]))
    assert max(map(len, tokenizer.get_vocab())) <= LONGEST_WORD
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
