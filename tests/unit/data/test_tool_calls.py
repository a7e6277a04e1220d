"""Calls of tools, reasoning and marks of turns: every common notation means the same, whatever the template."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from train.data.templates import FOLDER, ChatTemplate, render
from zerotune.data.fields import Fields, RowError
from zerotune.data.fit_messages import abilities
from zerotune.data.formats import FORMATS

TRL = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8") for path in sorted([*TRL.glob("*.jinja"), *FOLDER.glob("*.jinja")])
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TOOL = {
    "name": "天气",
    "description": "查询天气",
    "parameters": {"type": "object", "properties": {"城市": {"type": "string"}}, "required": ["城市"]},
}
TOOLS = [{"type": "function", "function": TOOL}]
ARGUMENTS = {"城市": '奥斯陆 "Ø"', "days": [1, 2.5, True, None], "more": {"τ": "二\n行", "☔": {}}}
JSON = json.dumps(ARGUMENTS, ensure_ascii=False)
ESCAPED = json.dumps(ARGUMENTS)
ANSWER = '{"雨": true,\n "mm": "3"}'
CALL = {"name": "天气", "arguments": ARGUMENTS}
USER, END = {"role": "user", "content": "奥斯陆下雨吗？"}, {"role": "assistant", "content": "下雨。"}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "content": ANSWER}


def chat(call, result=RESULT, **columns):
    return {"messages": [USER, {"role": "assistant", **call}, result, END], "tools": TOOLS, **columns}


def tool_calls(function):
    return [{"id": "abcdefghi", "type": "function", "function": function}]


NOTATIONS = {
    "Hugging Face": chat({"content": "", "tool_calls": tool_calls(CALL)}),
    "Hugging Face, bare": chat({"tool_calls": [{**CALL, "id": "abcdefghi"}]}, tools=[TOOL]),
    "OpenAI": chat({"content": None, "refusal": None, "tool_calls": tool_calls({**CALL, "arguments": JSON})}),
    "OpenAI, escaped": chat({"content": None, "tool_calls": tool_calls({**CALL, "arguments": ESCAPED})}),
    "OpenAI, parts": chat(
        {"content": [], "tool_calls": tool_calls({**CALL, "arguments": JSON})},
        {**RESULT, "content": [{"type": "text", "text": ANSWER}]},
    ),
    "OpenAI, legacy": chat(
        {"content": None, "function_call": {**CALL, "arguments": JSON}},
        {"role": "function", "name": "天气", "content": ANSWER},
        tools=None,
        functions=[TOOL],
    ),
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": USER["content"]},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": ANSWER},
            {"from": "gpt", "value": END["content"]},
        ],
        "tools": json.dumps([TOOL]),
    },
    "Hermes": chat(
        {"content": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"},
        {"role": "tool", "content": ANSWER},
    ),
}


def read(row):
    return FORMATS["chat"].read(Fields(row, {}))


def template(source):
    return ChatTemplate("", source, TOKENS, source, source)


def written(name, row):
    """What is learned of a row, and what is left out; or why it is refused."""
    left: set[str] = set()
    try:
        text, spans = render(template(TEMPLATES[name]), read(row), left)
    except RowError as error:
        return str(error)
    return [text[start:end] for start, end in spans], left


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_notation_of_a_call_is_learned_alike(name):
    results = {notation: written(name, row) for notation, row in NOTATIONS.items()}
    if abilities(TEMPLATES[name]).arguments is None:  # its text is all that such a template can write
        del results["Hermes"]
    assert [notation for notation in results if results[notation] != results["Hugging Face"]] == []


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name.endswith(("_training", "llama3_1", "qwen2_5"))])
def test_a_call_is_learned_whole_or_refused_with_the_reason(name):
    result = written(name, NOTATIONS["OpenAI"])
    if isinstance(result, str):
        assert result.startswith("the chat template"), result
        assert not name.startswith(("qwen", "glm", "gptoss", "deepseek", "llama", "nemotron", "lfm")), result
        return
    call, _, answer = "".join(result[0]).partition("下雨。")
    assert "天气" in call
    assert answer
    assert JSON in call or not {"qwen2_5", "llama3_1", "gptoss_training", "deepseekv3_training"} & {name}
    assert '\\"城市' not in call


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "gptoss", "glm4moe", "qwen3_5_nothink", "deepseekv3"])
def test_arguments_are_handed_over_as_the_template_takes_them(name):
    assert abilities(TEMPLATES[name]).arguments == ("text" if name == "deepseekv3" else "object")


BOTH = chat({"content": "让我看看。", "tool_calls": tool_calls(CALL)})


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_beside_a_call_is_learned_too_or_the_row_is_bad(name):
    result = written(name, BOTH)
    if isinstance(result, str):
        assert result.startswith("the chat template")
    else:
        (call, _), _ = result
        assert "让我看看。" in call
        assert "天气" in call


def test_a_template_without_calls_learns_their_json_below_the_text():
    (call, _), left = written("plain", BOTH)
    assert call == f"让我看看。\n{json.dumps(CALL, ensure_ascii=False)}</s>"
    assert left == set()


def test_tools_that_the_template_does_not_write_are_named():
    (_, _), left = written("llama3", NOTATIONS["OpenAI"])
    assert left == {"tools (the chat template writes none)"}


REASONINGS = {
    "reasoning_content": {"content": "4", "reasoning_content": "二加二"},
    "reasoning": {"content": "4", "reasoning": "二加二"},
    "thinking": {"content": "4", "thinking": "二加二"},
    "marks": {"content": "<think>\n二加二\n</think>\n\n4"},
    "the end mark": {"content": "二加二\n</think>\n\n4"},
    "a part": {"content": [{"type": "thinking", "thinking": "二加二"}, {"type": "text", "text": "4"}]},
}
ASKED = {"role": "user", "content": "2+2？"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_notation_of_reasoning_is_learned_alike(name):
    rows = {how: {"messages": [ASKED, {"role": "assistant", **said}]} for how, said in REASONINGS.items()}
    results = {how: written(name, row) for how, row in rows.items()}
    if abilities(TEMPLATES[name]).reasoning != "key":
        del results["the end mark"]  # of a text that begins within the thought: learned as it stands
    assert len(set(map(str, results.values()))) == 1
    if isinstance(results["reasoning"], tuple):
        said, left = "".join(results["reasoning"][0]), results["reasoning"][1]
        assert said.index("二加二") < said.index("4")
        assert not left
    else:
        assert results["reasoning"].startswith(
            ("the chat template leaves out the reasoning", "the chat template writes earlier turns")
        )


def test_reasoning_of_earlier_turns_may_be_left_out_and_is_named():
    row = {"messages": [ASKED, {"role": "assistant", **REASONINGS["marks"]}] * 2}
    assert written("qwen2_5_training", row)[1] == set()
    [first, second], left = written("gptoss_training", row)
    assert "二加二" not in first
    assert "二加二" in second
    assert left == {"reasoning of earlier turns (the chat template does not write it)"}


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"training": 0}, {"loss": False}, {"loss_weight": 0.0}]
)
@pytest.mark.parametrize(
    "name", [name for name in TEMPLATES if name.endswith("_training")] + ["plain", "chatml", "raw"]
)
def test_a_turn_marked_0_is_read_and_not_learned(name, mark):
    first, second = {"role": "assistant", "content": "五"}, {"role": "assistant", "content": "六"}
    plain = written(name, {"messages": [ASKED, first, ASKED, second]})
    marked = written(name, {"messages": [ASKED, {**first, **mark}, ASKED, {**second, "weight": 1}]})
    assert plain[0][0] not in marked[0]
    assert plain[0][-1] in marked[0]
    assert "六" in "".join(marked[0])
    assert "五" not in "".join(marked[0])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"content": "x", "weight": 0.5}, "messages[1].weight is 0.5: a turn is learned (1, true) or not (0, false)"),
        ({"content": "x", "train_detail": [{"begin_offset": 0}]}, "messages[1].train_detail: parts of a turn cannot"),
        ({"content": "x", "weight": 0}, "no answer: every turn of the assistant is marked 0"),
        ({"content": [{"type": "image_url"}]}, "messages[1].content[0] is of type 'image_url': only text"),
        ({"content": [{"type": "tool_use", "id": "x"}]}, "messages[1].content[0] is of type 'tool_use': only text"),
        ({"content": "x", "thinking": "a", "reasoning": "b"}, "messages[1] has different thoughts under"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, "messages[1].tool_calls[0].arguments is not"),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]},
            "messages[1].tool_calls[0].arguments is not",
        ),
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, "messages[1].tool_calls[0] has no name of a function"),
        ({"tool_calls": [{"type": "custom", "custom": {}}]}, "messages[1].tool_calls[0].type is 'custom'"),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}]},
            "messages[1].tool_calls[0].arguments has a key twice in one object",
        ),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": '{"a": NaN}'}}]},
            "messages[1].tool_calls[0].arguments holds NaN, which JSON does not know",
        ),
    ],
)
def test_what_cannot_be_learned_is_a_bad_row_with_its_place(entry, reason):
    with pytest.raises(RowError) as caught:
        read({"messages": [ASKED, {"role": "assistant", **entry}]})
    assert str(caught.value).startswith(reason)


def test_a_sharegpt_call_that_is_broken_json_is_a_bad_row():
    row = {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": '{"name": "f", '}]}
    with pytest.raises(RowError, match=r"conversations\[1\]\.value is not valid JSON"):
        read(row)


def test_unknown_keys_are_named_by_their_kind():
    turn = {"role": "assistant", "content": "x", "audio": {"id": 1}, "refusal": None, "annotations": []}
    call = {"index": 0, "function": {"name": "f", "arguments": {}}}
    row = {
        "messages": [
            {**ASKED, "name": "Ann", "weight": 1},
            turn,
            {**turn, "tool_calls": [call]},
            {**RESULT, "loss": 0},
        ],
    }
    assert read(row).left_out == (
        "messages[].audio",
        "messages[].name",
        "messages[].tool_calls[].index",
        "messages[].weight of turns that are not the assistant's",
        "turns after the last answer",
    )


HERMES_SYSTEM = {
    "role": "system",
    "content": "Answer with calls in <tool_call></tool_call>. <tools> [" + json.dumps(TOOL) + "] </tools>",
}


def test_a_hermes_system_message_says_its_own_way_and_it_is_kept():
    called = {"role": "assistant", "content": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"}
    row = {"messages": [HERMES_SYSTEM, USER, called]}
    [said], left = written("llama3_1", row)
    assert said == called["content"] + "<|eot_id|>"
    assert left == set()
    [native], _ = written("llama3_1", {"messages": [USER, called], "tools": [TOOL]})
    assert native == f'{{"name": "天气", "parameters": {JSON}}}<|eot_id|>'


def test_the_marks_of_a_hermes_result_are_not_doubled():
    row = chat(
        {"tool_calls": tool_calls(CALL)}, {"role": "tool", "content": f"<tool_response>\n{ANSWER}\n</tool_response>"}
    )
    text, _ = render(template(TEMPLATES["qwen2_5"]), read(row))
    assert text.count("<tool_response>") == 1
    assert ANSWER in text


@pytest.mark.parametrize("history", [[["一", "二"], ["三", "四"]], '[["一", "二"], ["三", "四"]]'])
def test_the_history_of_an_instruction_is_the_turns_before(history):
    row = {"system": "S", "history": history, "instruction": "五", "output": "六"}
    said = FORMATS["io"].read(Fields(row, {})).messages
    assert [message["content"] for message in said] == ["S", "一", "二", "三", "四", "五", "六"]
    assert [message["role"] for message in said[1:3]] == ["user", "assistant"]
    with pytest.raises(RowError, match="field `history` is not a list of pairs"):
        FORMATS["io"].read(Fields({**row, "history": ["一"]}, {}))


TURN = "<{{ m.role }}>{% if m.tool_calls %}{{ m.content }}{% for c in m.tool_calls %}{{ %s }}"
TURN += "{{ c.function.arguments | tojson }}{% endfor %}{% elif m.role == 'tool' %}{{ %s }}{{ m.content }}"
TURN = "{% for m in messages %}" + TURN + "{% else %}{{ m.content }}{% endif %}</s>{% endfor %}"


@pytest.mark.parametrize("given", ["call_9", "abcdefghi", ""])
def test_ids_of_calls_are_as_the_template_takes_them(given):
    names = {
        "Mistral": "(raise_exception('nine letters') if c.id | default('') | length != 9 else c.id) + c.function.name"
    }
    names["Kimi"] = "c.id"  # which holds the name
    for family, call in names.items():
        TEMPLATES[family] = TURN.replace("%s", call, 1).replace("%s", "m.tool_call_id", 1)
        calls = [{"id": f"{given[:-1]}{k}", "function": CALL} if given else {"function": CALL} for k in (1, 2)]
        results = [
            {"role": "tool", "content": f"{k} Grad", **({"tool_call_id": calls[k - 1]["id"]} if given else {})}
            for k in (1, 2)
        ]
        order = [1, 0] if given else [0, 1]  # tools may answer in another order, where ids tell which is which
        row = {"messages": [USER, {"role": "assistant", "tool_calls": calls}, *(results[k] for k in order), END]}
        conversation = read(row)
        text, spans = render(template(TEMPLATES.pop(family)), conversation)
        said = text[slice(*spans[0])]
        ids = re.findall(r"([0-9a-z]{9})天气" if family == "Mistral" else r"(functions\.天气:[01])", said)
        assert len(set(ids)) == 2
        assert [text.index(f"{ids[k]}{k + 1} Grad") for k in order] == sorted(
            text.index(f"{ids[k]}{k + 1} Grad") for k in order
        )
        assert ids == ["abcdefgh1", "abcdefgh2"] or family == "Kimi" or given != "abcdefghi"


SAID = {
    "messages": [
        {"role": "system", "content": "SYSTEM"},
        {"role": "user", "content": "FIRST"},
        {
            "role": "assistant",
            "reasoning_content": "THOUGHT1",
            "tool_calls": [{"name": "NAME", "arguments": {"KEY": "VALUE"}}],
        },
        {"role": "tool", "content": "RESULT"},
        {"role": "assistant", "content": "ANSWER1", "reasoning_content": "THOUGHT2"},
        {"role": "user", "content": "SECOND"},
        {"role": "assistant", "content": "ANSWER2", "reasoning_content": "THOUGHT3"},
    ],
    "tools": [{"name": "NAME", "parameters": {"type": "object", "properties": {"KEY": {"type": "string"}}}}],
}
LEARNED = ("NAME", "KEY", "VALUE", "ANSWER1", "ANSWER2", "THOUGHT3")
READ = ("SYSTEM", "FIRST", "RESULT", "SECOND")
FAMILIES = (
    "qwen2_5",
    "qwen3_training",
    "glm4moe_training",
    "deepseek_r1_distill_training",
    "lfm2_2_5",
    "gptoss_training",
)


def lost(source):
    """What of SAID is neither learned nor read, nor named as left out; nothing where the row is refused."""
    left: set[str] = set()
    try:
        text, spans = render(template(source), read(SAID), left)
    except RowError:
        return []
    learned = "".join(text[start:end] for start, end in spans)
    is_named = any("reasoning" in name for name in left)
    thoughts = [] if is_named else [thought for thought in ("THOUGHT1", "THOUGHT2") if thought not in learned]
    return [*(word for word in LEARNED if word not in learned), *(word for word in READ if word not in text), *thoughts]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_is_taken_out_of_a_template_nothing_is_lost_in_silence(name):
    source = TEMPLATES[name]
    outputs = [
        match
        for match in re.finditer(r"\{\{-?.*?-?\}\}", source, re.DOTALL)
        if re.search("content|call|tool|reas|think", match[0])
    ]
    assert len(outputs) > 5
    assert lost(source) == []
    broken = {match[0]: lost(source[: match.start()] + source[match.end() :]) for match in outputs}
    assert {output: words for output, words in broken.items() if words} == {}


def test_what_is_asked_only_ignores_marks_and_says_so():
    row = {"messages": [ASKED, {**END, "weight": 0}, ASKED, {**END, "weight": 0}]}
    conversation = FORMATS["chat"].read(Fields(row, {}, asks=True))
    assert conversation.left_out == ("marks of turns that are not to be learned",)
    assert not any("learned" in message for message in conversation.messages)


def test_preferred_answers_know_calls_tools_and_what_is_left_out():
    chosen, other = (
        {"role": "assistant", "content": text, "audio": {"id": 1}, "weight": 1} for text in ("下雨。", "不。")
    )
    before = NOTATIONS["OpenAI"]["messages"][:3]
    row = {"prompt": before, "chosen": [{**chosen, "weight": 0}], "rejected": [other], "tools": TOOLS}
    pair = FORMATS["preference"].read(Fields(row, {}))
    assert pair.chosen.tools == pair.rejected.tools == TOOLS
    assert pair.chosen.messages[1]["tool_calls"][0]["function"]["arguments"] == ARGUMENTS
    assert pair.chosen.left_out == ("chosen[].audio", "marks of turns that are not to be learned")
    with pytest.raises(RowError, match="chosen and rejected are the same"):
        FORMATS["preference"].read(Fields({**row, "rejected": [chosen]}, {}))
