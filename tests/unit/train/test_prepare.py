"""Rows to tokens: what is learned (test_masks.py shows it token by token); windows, cache, split and overlap."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.support.data_tools import (
    CHATML_MARKS,
    TEXTS,
    corpus_of,
    learned,
    recipe,
    shared_data,
    tokenizer,
    write_jsonl,
)
from tests.support.ranks import Solo
from train.config import SourceConfig
from train.data.prepare import prepare
from train.data.token_table import TABLE
from zerotune.common.errors import UserError
from zerotune.data.formats import FORMATS, Format

TURN = {"question": "What is the capital of France?", "answer": "Paris, of course."}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Fine."},
    {"role": "user", "content": "法国的首都？"},
    {"role": "assistant", "content": "巴黎。"},
]


MASKS = {
    "qa": (TURN, "### User:\nWhat is the capital of France?\n\n### Assistant:\n", ["Paris, of course.</s>"]),
    "pr": ({"prompt": "Hi", "response": "你好"}, "### User:\nHi\n\n### Assistant:\n", ["你好</s>"]),
    "io": (
        {"instruction": "Add", "input": "1 1", "output": "2"},
        "### User:\nAdd\n1 1\n\n### Assistant:\n",
        ["2</s>"],
    ),
    "chat": ({"messages": CHAT}, "### System:\nBe brief.", ["Fine.</s>", "巴黎。</s>"]),
}


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("trims", [True, False])
def test_answers_and_their_end_are_learned_and_nothing_else(tmp_path, form, trims):
    row, start, answers = MASKS[form]
    using = tokenizer(trims=trims)
    corpus = corpus_of(tmp_path, [row], form, using, max_length_tokens=200)
    ids, labels = corpus.train.tokens(0)
    assert using.decode(ids).startswith(start)
    assert learned(corpus, using) == answers
    assert corpus.train.learned_n[0] == (labels != -100).sum()
    assert corpus.train.lengths_n[0] == len(ids)
    assert ids.dtype == labels.dtype == np.int32


def test_a_corpus_learns_every_token_and_ends_with_the_end_of_text(tmp_path):
    using = tokenizer()
    corpus = corpus_of(tmp_path, [{"text": TEXTS[2]}], "text", using)
    ids, labels = corpus.train.tokens(0)
    assert using.decode(ids) == TEXTS[2] + "</s>"
    assert labels[0] == -100
    assert np.array_equal(labels[1:], ids[1:])
    assert corpus.template_hash == ""
    assert corpus.stop_ids == (using.eos_token_id,)


def test_a_format_like_text_is_a_corpus_too(tmp_path, monkeypatch):
    verses = Format(("verses",), lambda fields: fields.text("verses"), like="text")
    monkeypatch.setitem(FORMATS, "verses", verses)
    using, long = tokenizer(), " ".join(TEXTS)
    plain = corpus_of(tmp_path / "plain", [{"text": long}], "text", using, max_length_tokens=20)
    like = corpus_of(tmp_path / "like", [{"verses": long}], "verses", using, max_length_tokens=20)
    assert len(like.train) == len(plain.train) > 1
    assert learned(like, using) == learned(plain, using)
    assert like.template_hash == ""
    assert [line.partition(": ")[2] for line in like.lines if "continue" in line] == [
        line.partition(": ")[2] for line in plain.lines if "continue" in line
    ]


def test_no_second_start_token_and_no_second_end(tmp_path):
    using = tokenizer(bos=True)
    corpus = corpus_of(tmp_path, [{"text": "Hello</s>"}, {"text": "Hello"}], "text", using)
    for row in (0, 1):
        assert using.decode(corpus.train.tokens(row)[0]) == "<s>Hello</s>"
    chat = corpus_of(tmp_path, [TURN], "qa", using)
    ids = chat.train.tokens(0)[0].tolist()
    assert ids.count(using.bos_token_id) == 1
    assert ids[0] == using.bos_token_id


def test_chatml_ends_turns_with_its_own_token_and_says_so(tmp_path):
    using = tokenizer()
    corpus = corpus_of(tmp_path, [{"messages": CHAT}], "chat", using, chat_template="chatml", max_length_tokens=200)
    assert learned(corpus, using) == ["Fine.<|im_end|>", "巴黎。<|im_end|>"]
    assert corpus.stop_ids == (using.convert_tokens_to_ids(CHATML_MARKS[1]),)


def test_an_end_that_is_no_token_is_warned_about(tmp_path):
    template = tmp_path / "open.jinja"
    template.write_text("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    corpus = corpus_of(tmp_path, [TURN], "qa", chat_template=str(template))
    assert any("WARNING: 1 answers do not end with a special token" in line for line in corpus.lines)
    assert corpus.stop_ids == ()


def test_a_template_that_cannot_be_learned_from_names_a_row(tmp_path):
    template = tmp_path / "prompt.jinja"
    template.write_text("{% if add_generation_prompt %}Answer: {% endif %}x")
    with pytest.raises(UserError, match=r"rows\.jsonl:1: the chat template writes .*differently.*data\.chat_template"):
        corpus_of(tmp_path, [TURN], "qa", chat_template=str(template))
    template.write_text(
        "{% for m in messages %}{{ m.content if m == messages[-1] or m.role == 'user' }}</s>{% endfor %}"
    )
    rows = [{"messages": CHAT[1:3]}, {"messages": CHAT[1:]}]
    corpus = corpus_of(tmp_path, rows, "chat", chat_template=str(template), on_bad_row="skip")
    assert len(corpus.train) == 1  # single turns can be told apart
    assert any("1 of 2 rows skipped: 1 the chat template writes earlier turns differently" in x for x in corpus.lines)


def test_the_system_prompt_goes_before_conversations_without_one(tmp_path):
    using = tokenizer()
    rows = [{"messages": CHAT[1:3]}, {"messages": CHAT[:3]}]
    corpus = corpus_of(tmp_path, rows, "chat", using, system_prompt="Answer in verse.", max_length_tokens=200)
    first, second = (using.decode(corpus.train.tokens(row)[0]) for row in (0, 1))
    assert first.startswith("### System:\nAnswer in verse.\n\n### User")
    assert second.startswith("### System:\nBe brief.\n\n### User")


def test_a_missing_pad_token_is_borrowed_without_adding_one():
    using = tokenizer(pad_token=None)
    size = len(using)
    assert using.pad_token is None
    from train.data.setup import set_up

    set_up(recipe("unused", SourceConfig("x", "qa")), using)
    assert using.pad_token == "<unk>"
    only_end = tokenizer(unk_token=None)
    set_up(recipe("unused", SourceConfig("x", "qa")), only_end)
    assert only_end.pad_token == "</s>"
    assert len(using) == len(only_end) == size


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80).filter(lambda t: t.strip()))
@settings(max_examples=60, deadline=None)
def test_texts_in_any_script_come_back_whole(tmp_path_factory, text):
    using = tokenizer(marks=())
    folder = tmp_path_factory.mktemp("text")
    corpus = corpus_of(folder, [{"text": text}], "text", using, max_length_tokens=10_000)
    ids, _ = corpus.train.tokens(0)
    end = "" if text.endswith("</s>") else "</s>"
    assert using.decode(ids, clean_up_tokenization_spaces=False) == text + end


@given(
    answers=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=1, max_size=3)
)
@settings(max_examples=60, deadline=None)
def test_exactly_the_answers_are_learned_whatever_they_say(tmp_path_factory, answers):
    answers = [answer for answer in answers if answer.strip()] or ["x"]
    using = tokenizer()
    messages = [m for a in answers for m in ({"role": "user", "content": "问?"}, {"role": "assistant", "content": a})]
    folder = tmp_path_factory.mktemp("chat")
    corpus = corpus_of(
        folder, [{"messages": messages}], "chat", using, max_length_tokens=10_000, chat_template="chatml"
    )
    assert learned(corpus, using) == [answer + "<|im_end|>" for answer in answers]


@pytest.mark.parametrize("limit", [2, 3, 7, 64])
def test_windows_of_a_long_text_learn_every_token_once(tmp_path, limit):
    using = tokenizer()
    texts = [TEXTS[0], "Hi", TEXTS[1]]
    corpus = corpus_of(tmp_path, [{"text": text} for text in texts], "text", using, max_length_tokens=limit)
    assert corpus.train.lengths_n.max() <= limit
    whole = [using(text)["input_ids"] + [using.eos_token_id] for text in texts]
    rebuilt: list[list[int]] = []
    for row in range(len(corpus.train)):
        ids, labels = corpus.train.tokens(row)
        if not rebuilt or corpus.train.row_id(row) != corpus.train.row_id(row - 1):
            rebuilt.append([int(ids[0])])
        assert labels[0] == -100
        assert rebuilt[-1][-1] == ids[0]  # the token that the window before ended with
        rebuilt[-1] += labels[1:].tolist()
    assert rebuilt == whole
    assert corpus.train.learned_n.sum() == sum(map(len, whole)) - len(texts)


def test_long_conversations_are_cut_and_counted_and_those_with_nothing_left_are_bad(tmp_path):
    using = tokenizer()
    rows = [TURN, {"question": "x", "answer": "word " * 200}, {"question": "word " * 200, "answer": "x"}]
    with pytest.raises(UserError, match=r"1 of 3 rows.*\n.*rows\.jsonl:3: nothing left to learn after truncation: the"):
        corpus_of(tmp_path, rows, "qa", using)
    corpus = corpus_of(tmp_path, rows, "qa", using, on_bad_row="skip")
    assert corpus.train.lengths_n.tolist()[1] == 64
    assert len(corpus.train) == 2
    assert "data.train[0]: 1 row is truncated at data.max_length_tokens (64)" in corpus.lines
    assert any("1 of 3 rows skipped: 1 nothing left to learn after truncation; the first is" in x for x in corpus.lines)


# the cache


def table_files(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob(TABLE)}


def test_many_bad_rows_are_refused_before_all_rows_are_read(tmp_path):
    """Every row would be cut to nothing: the rows after the first chunks, and the next source, are not tokenised."""
    rows = [{"question": "word " * 100, "answer": f"{number}"} for number in range(5000)]
    sources = [SourceConfig(str(write_jsonl(tmp_path / f"{name}.jsonl", rows)), "qa") for name in "ab"]
    with pytest.raises(UserError, match=r"2,304 of the first 2,304 rows cannot be used") as caught:
        prepare(recipe(tmp_path / "cache", *sources), tokenizer(), 0, Solo())
    assert "a.jsonl:1: nothing left to learn after truncation" in str(caught.value)
    assert "b.jsonl" not in str(caught.value)


def test_a_second_run_tokenises_nothing(tmp_path):
    rows = [TURN] * 5
    first = corpus_of(tmp_path, rows, "qa")
    files = table_files(tmp_path)
    second = corpus_of(tmp_path, rows, "qa")
    assert len(files) == 1
    assert table_files(tmp_path) == files
    assert first.digest == second.digest
    assert "(tokenised)" in first.lines[0]
    assert "(from the cache)" in second.lines[0]


def test_the_place_of_a_file_does_not_matter_but_its_content_does(tmp_path):
    using = tokenizer()
    files = [write_jsonl(tmp_path / name / "rows.jsonl", [TURN]) for name in ("one", "two")]
    corpora = [prepare(recipe(tmp_path / "cache", SourceConfig(str(f), "qa")), using, 0, Solo()) for f in files]
    assert len(table_files(tmp_path)) == 1
    assert corpora[0].digest == corpora[1].digest
    assert [corpus.train.row_id(0) for corpus in corpora] == [f"{file}:1" for file in files]
    write_jsonl(files[1], [{**TURN, "answer": "Lyon"}])
    changed = prepare(recipe(tmp_path / "cache", SourceConfig(str(files[1]), "qa")), using, 0, Solo())
    assert len(table_files(tmp_path)) == 2
    assert changed.digest != corpora[0].digest


CHANGES = {
    "max_length_tokens": {"max_length_tokens": 20},
    "chat_template": {"chat_template": "chatml"},
    "system_prompt": {"system_prompt": "Be kind."},
    "tokenizer": {"using": tokenizer(marks=())},
    "columns": {"columns": {"answer": "question"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_tokens_is_tokenised_anew(tmp_path, change):
    first = corpus_of(tmp_path, [TURN], "qa")
    second = corpus_of(tmp_path, [TURN], "qa", **CHANGES[change])
    assert len(table_files(tmp_path)) == 2
    assert first.digest != second.digest


def test_a_mixture_digest_knows_its_sources_and_their_weights(tmp_path):
    a = write_jsonl(tmp_path / "a.jsonl", [TURN, {"question": "q", "answer": "a"}])
    b = write_jsonl(tmp_path / "b.jsonl", [{"text": "some text"}])

    def digest(*sources):
        return prepare(recipe(tmp_path / "cache", *sources), tokenizer(), 0, Solo()).digest

    qa, text = SourceConfig(str(a), "qa"), SourceConfig(str(b), "text")
    seen = [
        digest(qa, text),
        digest(text, qa),
        digest(qa),
        digest(qa, SourceConfig(str(b), "text", weight=2.0)),
        digest(SourceConfig(str(a), "qa", fraction=0.5), text),
    ]
    assert len(set(seen)) == len(seen)
    assert digest(qa, text) == seen[0]
    mixed = prepare(recipe(tmp_path / "cache", qa, text), tokenizer(), 0, Solo()).train
    assert mixed.sources_n.tolist() == [0, 0, 1]
    assert mixed.row_id(2) == f"{b}:1"


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "empty manifest"])
def test_a_damaged_cache_entry_is_made_anew(tmp_path, damage):
    whole = corpus_of(tmp_path, [TURN] * 50, "qa")
    expected = [whole.train.tokens(row)[0].tolist() for row in range(50)]
    del whole
    [table] = table_files(tmp_path)
    content = bytearray(table.read_bytes())
    manifest = table.with_name("manifest.json")
    if damage == "flip":
        content[len(content) // 2] ^= 1
        table.write_bytes(content)
    elif damage == "truncate":
        table.write_bytes(content[:-100])
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("")
    again = corpus_of(tmp_path, [TURN] * 50, "qa")
    assert "(tokenised)" in again.lines[0]
    assert [again.train.tokens(row)[0].tolist() for row in range(50)] == expected


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    corpus_of(tmp_path, [TURN], "qa")
    [table] = table_files(tmp_path)
    entry = table.parent
    leftover = entry.with_name(f"{entry.name}.tmp-12345")
    entry.rename(leftover)
    corpus_of(tmp_path, [TURN], "qa")
    assert entry.is_dir()
    assert not leftover.exists()


def test_two_runs_at_once_tokenise_once(tmp_path):
    rows = [{"question": f"What is {i}?", "answer": f"{i}."} for i in range(600)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    results = []

    def run():
        results.append(prepare(recipe(tmp_path / "cache", SourceConfig(str(path), "qa")), tokenizer(), 0, Solo()))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({corpus.digest for corpus in results}) == 1
    assert len(results) == 3
    assert sum("(tokenised)" in corpus.lines[0] for corpus in results) == 1


def test_a_cache_that_cannot_be_written_says_so(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [TURN])
    (tmp_path / "cache").write_text("a file stands where the folder should be")
    with pytest.raises(UserError, match="cannot be written") as caught:
        prepare(recipe(tmp_path / "cache", SourceConfig(str(path), "qa")), tokenizer(), 0, Solo())
    assert caught.value.exit_code == 73


def test_many_processes_give_the_tokens_of_one(tmp_path):
    rows = [{"question": f"What is {i}?", "answer": f"It is {i}. " * (i % 7 + 1)} for i in range(3000)]
    rows[2999] = {"question": "x", "answer": None}
    one = corpus_of(tmp_path / "one", rows, "qa", on_bad_row="skip")
    two = corpus_of(tmp_path / "two", rows, "qa", on_bad_row="skip", workers=2)
    assert one.digest == two.digest
    assert [line.split("the first")[0] for line in one.lines[1:2]] == [
        line.split("the first")[0] for line in two.lines[1:2]
    ]
    assert two.train.row_id(2998).endswith("rows.jsonl:2999")
    assert np.array_equal(one.train.tokens(2500)[1], two.train.tokens(2500)[1])


# split and overlap


def questions(count):
    return [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(count)]


def ids_of(split):
    return [split.row_id(row) for row in range(len(split))]


@pytest.mark.parametrize(("share", "held"), [(0.1, 20), (0.015, 3), (0.001, 1), (0.5, 100)])
def test_the_held_out_share_is_exact_disjoint_and_seeded(tmp_path, share, held):
    path = write_jsonl(tmp_path / "rows.jsonl", questions(200))
    config = recipe(tmp_path / "cache", SourceConfig(str(path), "qa"), validation_fraction=share)
    first, again, other = (prepare(config, tokenizer(), seed, Solo()) for seed in (0, 0, 1))
    assert len(first.validation) == held
    assert sorted(ids_of(first.train) + ids_of(first.validation)) == sorted(f"{path}:{i + 1}" for i in range(200))
    assert ids_of(first.validation) == ids_of(again.validation)
    assert ids_of(first.validation) != ids_of(other.validation)
    assert first.train.digest != other.train.digest
    assert len(table_files(tmp_path)) == 1


def test_all_windows_of_a_text_are_held_out_together(tmp_path):
    rows = [{"text": f"{i} {TEXTS[0]}"} for i in range(20)]
    corpus = corpus_of(tmp_path, rows, "text", max_length_tokens=8, validation_fraction=0.25)
    held, kept = set(ids_of(corpus.validation)), set(ids_of(corpus.train))
    assert len(held) == 5
    assert len(kept) == 15
    assert not held & kept


def test_one_text_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match=r"validation_fraction: 0\.1 of 1 row.*<\|endoftext\|>"):
        corpus_of(tmp_path, [{"text": "only one"}], "text", validation_fraction=0.1)


@pytest.fixture
def overlapping(tmp_path):
    """A recipe whose validation data repeat row 2 (in other letters) and ask what row 4 asks; sorted by file name."""
    train = write_jsonl(tmp_path / "train.jsonl", questions(6))
    same = {"question": "ＷＨＡＴ  is 1 ?", "answer": "it IS 1."}
    asked = {"question": "What is 3?", "answer": "Three."}
    held = write_jsonl(tmp_path / "held.jsonl", [{"question": "New?", "answer": "Yes."}, same, asked])

    def make(**options):
        sources = {"validation": [SourceConfig(str(held), "qa")], **options}
        return recipe(tmp_path / "cache", SourceConfig(str(train), "qa"), **sources)

    return make, train, held


def test_overlap_is_found_and_told(overlapping):
    make, train, held = overlapping
    corpus = prepare(make(), tokenizer(), 0, Solo())
    [line] = [line for line in corpus.lines if "overlap with" in line]
    assert line.startswith(
        "WARNING: overlap with the validation data: 1 training row(s) are there too, and 1 more have"
    )
    assert f"{train}:2 = {held}:2; {train}:4 = {held}:3" in line
    assert len(corpus.train) == 6
    with pytest.raises(UserError, match=r"1 training row\(s\) are there too.*on_overlap"):
        prepare(make(on_overlap="error"), tokenizer(), 0, Solo())


def test_overlap_is_dropped_from_training(overlapping):
    make, train, _ = overlapping
    corpus = prepare(make(on_overlap="drop"), tokenizer(), 0, Solo())
    assert ids_of(corpus.train) == [f"{train}:{i}" for i in (1, 3, 5, 6)]
    assert len(corpus.validation) == 3


def test_data_without_overlap_says_so(tmp_path):
    corpus = corpus_of(tmp_path, questions(50), "qa", validation_fraction=0.2)
    assert "overlap with the validation data: no row and no question" in corpus.lines
    with pytest.raises(UserError, match=r"removed from training, which leaves no row \(data\.on_overlap: drop\)"):
        corpus_of(tmp_path, [TURN] * 4, "qa", validation_fraction=0.5, on_overlap="drop")


# real data


def test_published_chinese_and_english_rows_come_back_whole(tmp_path):
    folder = shared_data()
    using = AutoTokenizer.from_pretrained(folder / "tokenizer-zh-en")
    for name in ("alpaca_en_demo.json", "alpaca_zh_demo.json"):
        rows = json.loads((folder / "alpaca" / name).read_text(encoding="utf-8"))[:100]
        for row in rows:
            for text in (row["instruction"], row["output"]):
                assert using.decode(using(text)["input_ids"], clean_up_tokenization_spaces=False) == text
        options = {"chat_template": "tokenizer", "max_length_tokens": 4096}
        corpus = corpus_of(tmp_path / name, rows, "io", using, **options)
        for number, row in enumerate(rows):
            assert learned(corpus, using, number) == [row["output"].lstrip("\n") + "<|im_end|>"]


# what is left out


def left_out(corpus):
    return [line for line in corpus.lines if "not used (in how many rows)" in line]


def test_what_rows_say_and_nobody_learns_is_named_once_a_source(tmp_path):
    rows = [{**TURN, "id": number, "lang": "zh" if number else None, "题目": ""} for number in range(3)]
    corpus = corpus_of(tmp_path, rows, "qa")
    assert left_out(corpus) == [
        "data.train[0]: parts of rows that are not used (in how many rows): column id (3), column lang (2)"
    ]
    again = corpus_of(tmp_path, rows, "qa")
    assert "(from the cache)" in again.lines[0]
    assert left_out(again) == left_out(corpus)
    assert left_out(corpus_of(tmp_path, [TURN], "qa")) == []


def test_keys_of_messages_and_tools_without_a_place_are_named(tmp_path):
    messages = [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "assistant", "content": "Hello"}]
    row = {"messages": messages, "tools": [{"name": "f"}], "conversations": [{"from": "gpt", "value": "x"}]}
    [line] = left_out(corpus_of(tmp_path, [row] * 2, "chat", chat_template="raw"))
    assert line.endswith("column conversations (2), messages[].name (2), tools (the chat template writes none) (2)")


def test_nulls_that_a_table_invents_are_not_learned_and_those_of_jsonl_are(tmp_path):
    import pyarrow
    from pyarrow import parquet

    def row(name, arguments, schema):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        messages = [
            {"role": "user", "content": "雨?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "ja"},
        ]
        return {"messages": messages, "tools": [{"type": "function", "function": {"name": name, "parameters": schema}}]}

    rows = [
        row("rain", {"city": "Oslo"}, {"properties": {"city": {"type": "string"}}}),
        row("add", {"n": {"a": 1, "of": [{"x": 1}, {"y": "z"}]}}, {"properties": {"n": {"type": "object"}}}),
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    using = tokenizer()
    source = SourceConfig(str(tmp_path / "rows.parquet"), "chat")
    table = prepare(recipe(tmp_path / "cache", source, max_length_tokens=2000), using, 0, Solo())
    written = [using.decode(table.train.tokens(number)[0]) for number in range(2)]
    assert not [text for text in written if "null" in text or "None" in text]
    lines = corpus_of(tmp_path, rows, "chat", using, max_length_tokens=2000)
    assert written == [using.decode(lines.train.tokens(number)[0]) for number in range(2)]
    rows[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"city": None}
    said = corpus_of(tmp_path, rows, "chat", using, max_length_tokens=2000)
    assert learned(said, using)[0] == '{"name": "rain", "arguments": {"city": null}}</s>'


def test_published_tool_dialogues_in_chinese_are_learned_whole(tmp_path):
    folder = shared_data()
    using = AutoTokenizer.from_pretrained(folder / "tokenizer-zh-en")
    rows = json.loads((folder / "alpaca" / "glaive_toolcall_zh_demo.json").read_text(encoding="utf-8"))
    corpus = corpus_of(tmp_path, rows, "chat", using, chat_template="tokenizer", max_length_tokens=100_000)
    assert len(corpus.train) == len(rows) == 300
    assert left_out(corpus) == []
    for number, row in enumerate(rows):
        said = "".join(learned(corpus, using, number))
        for turn in row["conversations"]:
            if turn["from"] == "gpt":
                assert turn["value"].strip() in said
            elif turn["from"] == "function_call":
                assert json.dumps(json.loads(turn["value"])["arguments"], ensure_ascii=False) in said
