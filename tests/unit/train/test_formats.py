"""Formats and chat templates: which messages a row becomes, how they are written out, and what of it is learned."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from tests.support.data_tools import shared_data, tokenizer
from train.data.templates import NAMED, render, resolve
from zerotune.common.errors import UserError
from zerotune.data.conversations import Conversation
from zerotune.data.fields import Fields, RowError
from zerotune.data.formats import FORMATS

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "北京在哪里？"},
    {"role": "assistant", "content": "在中国。 "},
]


def read(form, row, columns=None):
    return FORMATS[form].read(Fields(row, columns or {}))


def turns(conversation):
    return [(message["role"], message["content"]) for message in conversation.messages]


def test_each_format_becomes_its_conversation():
    assert read("text", {"text": "One two"}) == "One two"
    expected = [("user", "Q"), ("assistant", "A")]
    assert turns(read("qa", {"question": "Q", "answer": "A", "other": 1})) == expected
    assert turns(read("pr", {"prompt": "Q", "response": "A"})) == expected
    assert turns(read("io", {"instruction": "Q", "output": "A"})) == expected
    for empty in ("", " ", None):
        assert turns(read("io", {"instruction": "Q", "input": empty, "output": "A"})) == expected
    assert turns(read("io", {"instruction": "Q", "input": "I", "output": "A"})) == [
        ("user", "Q\nI"),
        ("assistant", "A"),
    ]
    assert turns(read("pr", {"prompt": "Q", "response": "A", "system": "S"})) == [("system", "S"), *expected]


def test_columns_give_our_fields_their_names_in_the_file():
    row = {"题目": "Q", "答案": "A", "question": "decoy"}
    assert turns(read("qa", row, {"question": "题目", "answer": "答案"})) == [("user", "Q"), ("assistant", "A")]
    with pytest.raises(RowError, match="field `答案` is null"):
        read("qa", {**row, "答案": None}, {"question": "题目", "answer": "答案"})


def test_chat_takes_messages_and_sharegpt():
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert turns(read("chat", {"messages": messages})) == [("user", "Q"), ("assistant", "A")]
    sharegpt = [
        {"from": "human", "value": "Q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "A"},
        {"from": "human", "value": "thanks"},
    ]
    read_one = read("chat", {"conversations": sharegpt, "system": "S", "tools": '[{"name": "f"}]'})
    assert [role for role, _ in turns(read_one)] == ["system", "user", "assistant", "tool", "assistant"]
    assert read_one.tools == [{"type": "function", "function": {"name": "f"}}]
    assert read_one.left_out == ("turns after the last answer",)
    assert turns(read("chat", {"conversations": messages, "messages": None})) == [("user", "Q"), ("assistant", "A")]


SURROGATE = json.loads('"half \\ud83d"')
BAD = [
    ("qa", {"question": "Q"}, "field `answer` is missing"),
    ("qa", {"question": None, "answer": "A"}, "field `question` is null"),
    ("qa", {"question": "Q", "answer": 12}, "field `answer` is not text: it is a number"),
    ("qa", {"question": "Q", "answer": True}, "field `answer` is not text: it is true or false"),
    ("qa", {"question": " \n", "answer": "A"}, "field `question` is empty"),
    ("qa", {"question": SURROGATE, "answer": "A"}, "field `question` holds half a surrogate pair: \\ud83d"),
    ("text", {"text": ["a"]}, "field `text` is not text: it is a list"),
    ("text", {"text": ""}, "field `text` is empty"),
    ("io", {"instruction": "Q", "input": 3, "output": "A"}, "field `input` is not text: it is a number"),
    ("chat", {"x": 1}, "field `messages` is missing"),
    ("chat", {"messages": "hi"}, "field `messages` is not a list: it is text"),
    ("chat", {"messages": []}, "field `messages` is empty"),
    ("chat", {"messages": ["hi"]}, "messages[0] is not an object: it is text"),
    ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0] has an unknown role: 'robot', known are"),
    ("chat", {"messages": [{"role": "user", "content": None}]}, "messages[0].content is not text: it is null"),
    ("chat", {"messages": [{"role": "user", "content": "x"}]}, "no answer: no turn of the assistant"),
    (
        "chat",
        {"conversations": [{"from": "gtp", "value": "x"}]},
        "conversations[0] has an unknown from: 'gtp', known are",
    ),
    ("chat", {"conversations": [{"from": "gpt", "value": "x"}], "tools": "[{"}, "field `tools` is not valid JSON"),
    (
        "chat",
        {"conversations": [{"from": "gpt", "value": "x"}], "tools": [1]},
        "field `tools` is not a list of objects",
    ),
]


@pytest.mark.parametrize(("form", "row", "reason"), BAD, ids=[reason for *_, reason in BAD])
def test_a_row_that_does_not_fit_says_why(form, row, reason):
    with pytest.raises(RowError) as caught:
        read(form, row)
    assert str(caught.value).startswith(reason)
    assert caught.value.missing == reason.endswith("is missing")


EXPECTED = {
    "plain": (
        "### System:\nBe brief.\n\n### User:\nHi\n\n### Assistant:\nHello</s>\n\n"
        "### User:\n北京在哪里？\n\n### Assistant:\n在中国。</s>",
        ["Hello</s>", "在中国。</s>"],
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\n北京在哪里？<|im_end|>\n<|im_start|>assistant\n在中国。 <|im_end|>\n",
        ["Hello<|im_end|>", "在中国。 <|im_end|>"],
    ),
    "raw": ("Be brief.HiHello</s>北京在哪里？在中国。 </s>", ["Hello</s>", "在中国。 </s>"]),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_write_this_and_learn_that(name):
    template = resolve(name, tokenizer())
    text, spans = render(template, Conversation(TURNS))
    assert (text, [text[start:end] for start, end in spans]) == EXPECTED[name]


@pytest.mark.parametrize("name", NAMED)
def test_the_template_travels_with_the_tokenizer(name, tmp_path):
    using = tokenizer()
    template = resolve(name, using)
    using.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == template.text
    assert again.apply_chat_template(TURNS, tokenize=False) == render(template, Conversation(TURNS))[0]
    prompt = again.apply_chat_template(TURNS[:2], tokenize=False, add_generation_prompt=True)
    assert render(template, Conversation(TURNS))[0].startswith(prompt + "Hello")
    assert resolve("tokenizer", again).hash == template.hash


def test_a_tokenizer_without_a_template_gets_plain():
    assert resolve("tokenizer", tokenizer()).hash == resolve("plain", tokenizer()).hash
    assert len({resolve(name, tokenizer()).hash for name in NAMED}) == len(NAMED)


def test_a_start_token_is_written_where_the_tokenizer_would():
    with_bos = resolve("plain", tokenizer(bos=True))
    assert render(with_bos, Conversation(TURNS))[0].startswith("<s>### System")
    named_only = tokenizer(bos_token="<s>")
    assert render(resolve("plain", named_only), Conversation(TURNS))[0].startswith("### System")


MARKED = """{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}
{%- generation %}{{ message.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}
{{- message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"""
FORGETS = """{% for message in messages %}{% if message.role == 'assistant' and not loop.last %}[thought dropped]
{%- else %}{{ message.content }}{% endif %}</s>{% endfor %}"""
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"


def test_generation_marks_say_what_is_learned_even_where_a_later_turn_changes_earlier_text(tmp_path):
    (tmp_path / "mine.jinja").write_text(MARKED)
    text, spans = render(resolve(str(tmp_path / "mine.jinja"), tokenizer()), Conversation(TURNS))
    assert [text[start:end] for start, end in spans] == ["Hello<|im_end|>", "在中国。 <|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_cure(tmp_path):
    (tmp_path / "mine.jinja").write_text(FORGETS)
    template = resolve(str(tmp_path / "mine.jinja"), tokenizer())
    with pytest.raises(RowError, match=r"differently.*message 2 .*generation.*chatml or plain"):
        render(template, Conversation(TURNS))
    render(template, Conversation(TURNS[1:3]))  # a single turn can be told apart


def test_a_conversation_that_a_template_refuses_is_a_bad_row(tmp_path):
    (tmp_path / "mine.jinja").write_text(REFUSES)
    with pytest.raises(RowError, match="the chat template rejects it: no system role"):
        render(resolve(str(tmp_path / "mine.jinja"), tokenizer()), Conversation(TURNS))


def test_a_template_that_leaves_out_what_is_said_is_noticed(tmp_path):
    (tmp_path / "parts.jinja").write_text("{% for m in messages %}{{ m.role }}{{ m.content.text }}</s>{% endfor %}")
    with pytest.raises(RowError, match="the chat template leaves out what the system says in message 0"):
        render(resolve(str(tmp_path / "parts.jinja"), tokenizer()), Conversation(TURNS))


@pytest.mark.parametrize(
    ("choice", "content", "message"),
    [
        ("chatlm", None, r"unknown template `chatlm`; known are tokenizer, plain, chatml, raw"),
        ("{folder}/mine.jinjo", None, r"unknown template"),
        ("{folder}/minne.jinja", None, r"cannot be read: No such file or directory; did you mean .*mine\.jinja"),
        ("{folder}/mine.jinja", "{% for x in %}", r"mine\.jinja, line 1: "),
    ],
)
def test_a_template_that_cannot_be_used_says_so(tmp_path, choice, content, message):
    (tmp_path / "mine.jinja").write_text(content or "x")
    with pytest.raises(UserError, match=message):
        resolve(choice.format(folder=tmp_path), tokenizer())


def test_templates_need_the_tokens_they_end_with():
    with pytest.raises(UserError, match=r"chatml needs the tokens <\|im_start\|> and <\|im_end\|>.*use `plain`"):
        resolve("chatml", tokenizer(marks=()))
    with pytest.raises(UserError, match=r"`plain` ends answers with eos_token, which this tokenizer lacks"):
        resolve("plain", tokenizer(eos_token=None))


CALLS = read(
    "chat",
    {
        "conversations": [
            {"from": "human", "value": "2+2?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "4."},
        ],
        "tools": [{"name": "add"}],
    },
)
KNOWS_CALLS = (
    "{% for m in messages %}{% if m.tool_calls %}CALL {{ m.tool_calls[0].function.name }}"
    "({{ m.tool_calls[0].function.arguments | tojson }}){% else %}{{ m.content }}{% endif %}</s>{% endfor %}"
)


def test_calls_are_written_as_the_template_knows_them(tmp_path):
    (tmp_path / "calls.jinja").write_text(KNOWS_CALLS)
    text, spans = render(resolve(str(tmp_path / "calls.jinja"), tokenizer()), CALLS)
    assert [text[start:end] for start, end in spans] == ['CALL add({"a": 2, "b": 2})</s>', "4.</s>"]
    text, spans = render(resolve("plain", tokenizer()), CALLS)
    assert text.startswith('### Tools:\n[{"type": "function", "function": {"name": "add"}}]\n\n### User:\n2+2?')
    assert [text[start:end] for start, end in spans] == ['{"name": "add", "arguments": {"a": 2, "b": 2}}</s>', "4.</s>"]
    native = [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}]
    openai = read("chat", {"messages": [TURNS[1], {"role": "assistant", "content": None, "tool_calls": native}]})
    text, spans = render(resolve("plain", tokenizer()), openai)
    assert [text[start:end] for start, end in spans] == ['{"name": "add", "arguments": {"a": 2, "b": 2}}</s>']


def test_published_tool_dialogues_in_chinese_learn_calls_and_answers_and_nothing_else():
    folder = shared_data()
    rows = json.loads((folder / "alpaca" / "glaive_toolcall_zh_demo.json").read_text(encoding="utf-8"))
    template = resolve("tokenizer", AutoTokenizer.from_pretrained(folder / "tokenizer-zh-en"))
    for row in rows:
        text, spans = render(template, read("chat", row))
        said = [turn for turn in row["conversations"] if turn["from"] in ("gpt", "function_call")]
        assert len(spans) == len(said)
        for (start, end), turn in zip(spans, said, strict=True):
            if turn["from"] == "gpt":
                assert text[start:end] == turn["value"].lstrip("\n") + "<|im_end|>"
            else:
                call = text[start:end].removeprefix("<tool_call>\n").removesuffix("\n</tool_call><|im_end|>")
                assert json.loads(call) == json.loads(turn["value"])
