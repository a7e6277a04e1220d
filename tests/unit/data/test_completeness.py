"""Templates that leave out, repeat or reorder parts of a conversation are found."""

from __future__ import annotations

import json

import pytest

from train.data.templates import ChatTemplate, render
from zerotune.data.completeness import checked
from zerotune.data.conversations import Conversation
from zerotune.data.fields import RowError
from zerotune.data.fit_messages import rendered

# A template that writes everything; each fault below leaves one thing out of it, or puts it in another place.
WHOLE = """{%- for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}
{%- generation %}
{%- if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}
{{- m.content }}
{%- for call in m.tool_calls or [] %}CALL {{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}
{{- '</s>' }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"""
PLAIN = WHOLE.replace("{%- generation %}", "").replace("{% endgeneration %}", "")
ARGUMENTS = {"城市": "Oslo", "n": 4}
CALL = {"type": "function", "function": {"name": "rain", "arguments": ARGUMENTS}}
FULL = Conversation(
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "4"},  # stands elsewhere too: it is not enough to look for it in the text
        {"role": "assistant", "content": "Look.", "reasoning_content": "hm", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": '{"mm": 4,\n "é": "\\""}'},
        {"role": "assistant", "content": "4", "reasoning_content": "so 4"},
        {"role": "user", "content": "谢谢"},
        {"role": "assistant", "content": "不客气", "reasoning_content": "4"},
    ],
    [{"type": "function", "function": {"name": "rain", "parameters": {}}}],
)
FAULTS = {
    "the system message": (
        "{% else %}{{ m.content }}",
        "{% elif m.role != 'system' %}{{ m.content }}",
        "the system says",
    ),
    "the first question": ("{% else %}{{ m.content }}", "{% elif loop.index0 != 1 %}{{ m.content }}", "the user says"),
    "what a tool says": ("{% else %}{{ m.content }}", "{% elif m.role != 'tool' %}{{ m.content }}", "the tool says"),
    "an answer": ("{{- m.content }}", "{{- m.content if m.tool_calls }}", "the assistant says in message 4"),
    "text beside calls": ("{{- m.content }}", "{{- m.content if not m.tool_calls }}", "beside its calls in message 2"),
    "the last thought": ("{%- if m.reasoning_content", "{%- if not loop.last and m.reasoning_content", "the reasoning"),
    "a call": ("m.tool_calls or []", "[]", "the name of a called tool in message 2"),
    "a second call": ("m.tool_calls or []", "(m.tool_calls or [])[:1]", "the name of a called tool in message 2"),
    "a name": ("{{ call.function.name }}", "", "the name of a called tool in message 2"),
    "arguments": ("{{ call.function.arguments | tojson }}", "", "the arguments of a call in message 2"),
    "values": ("arguments | tojson", "arguments.keys() | list | tojson", "the arguments of a call in message 2"),
    "keys": ("arguments | tojson", "arguments.values() | list | tojson", "the arguments of a call in message 2"),
}


def said(source, conversation, left=None):
    return render(ChatTemplate("", source, {"eos_token": "</s>"}, source, source), conversation, left)


@pytest.mark.parametrize("source", [WHOLE, PLAIN], ids=["marked", "plain"])
def test_a_complete_template_has_no_problems(source):
    left: set[str] = set()
    text, spans = said(source, FULL, left)
    assert not left
    learned = [text[start:end] for start, end in spans]
    call = f"CALL rain {json.dumps(ARGUMENTS, ensure_ascii=False)}"
    assert learned[0].endswith(f"[hm]Look.{call}{call}</s>")
    assert len(learned) == 3


@pytest.mark.parametrize("source", [WHOLE, PLAIN], ids=["marked", "plain"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_incomplete_template_is_refused(fault, source):
    right, wrong, reason = FAULTS[fault]
    assert right in source
    broken = source.replace(right, wrong)
    text, _ = rendered(broken, FULL.messages, FULL.tools)
    with pytest.raises(RowError, match="the chat template") as caught:
        checked(broken, text, (), FULL.messages, FULL.tools)
    assert reason in str(caught.value)


@pytest.mark.parametrize("fault", ["a call", "a name", "arguments", "values", "keys"])
def test_calls_that_a_template_does_not_write_are_learned_as_json(fault):
    text, spans = said(WHOLE.replace(*FAULTS[fault][:2]), FULL)
    assert json.dumps([CALL["function"]] * 2, ensure_ascii=False) in text[slice(*spans[0])]


def test_omitted_tools_and_earlier_reasoning_are_named():
    left: set[str] = set()
    source = WHOLE.replace("tools or []", "[]").replace("{%- if m.r", "{%- if loop.last and m.r")
    said(source, FULL, left)
    assert left == {
        "tools (the chat template writes none)",
        "reasoning of earlier turns (the chat template does not write it)",
    }


@pytest.mark.parametrize(
    ("right", "wrong", "reason"),
    [
        ("{{- m.content }}", "{{- m.content }}{{ m.content }}", "more than once"),
        ("{%- for m in messages %}", "{%- for m in messages[::-1] %}", "before an earlier part"),
        ("{{- m.content }}", "{% endgeneration %}{{- m.content }}{% generation %}", "does not mark what the assistant"),
    ],
)
def test_repeated_unordered_and_unmarked_parts_are_refused(right, wrong, reason):
    with pytest.raises(RowError, match=reason):
        said(WHOLE.replace(right, wrong), FULL)


def test_omissions_that_depend_on_content_are_refused():
    source = WHOLE.replace("{{- m.content }}", "{{- m.content.split('|')[0] }}")
    rows = [[{"role": "user", "content": "x"}, {"role": "assistant", "content": text}] for text in ("whole", "ha|lf")]
    said(source, Conversation(rows[0]))
    with pytest.raises(RowError, match="leaves out what the assistant says in message 1"):
        said(source, Conversation(rows[1]))


@pytest.mark.parametrize("answer", ['{"rain": true, "mm": 3}', 'line\n"two"\\', "雨\t☔\u2028", "नमस्ते\nสวัสดี"])
@pytest.mark.parametrize("way", ["m.content", "m.content | tojson", "m.content | tojson(ensure_ascii=True)"])
def test_tool_results_may_be_escaped(answer, way):
    source = WHOLE.replace("{% else %}", "{% elif m.role == 'tool' %}{{ " + way + " }}{% else %}")
    messages = [*FULL.messages[:3], {"role": "tool", "content": answer}, *FULL.messages[4:]]
    said(source, Conversation(messages))
    with pytest.raises(RowError, match="what the tool says in message 3"):
        said(source.replace(f"'tool' %}}{{{{ {way} ", "'tool' %}{{ m.content[:-1] "), Conversation(messages))


@pytest.mark.parametrize("source", [WHOLE, PLAIN], ids=["marked", "plain"])
def test_each_part_is_searched_in_its_own_turn(source):
    talk = [("user", "2+2"), ("assistant", "4"), ("user", "还有吗? 4 4"), ("assistant", "好")]
    conversation = Conversation([{"role": role, "content": content} for role, content in talk])
    said(source, conversation)
    shy = source.replace("{{- m.content }}", "{{- m.content if m.content != '4' }}")
    with pytest.raises(RowError, match="leaves out what the assistant says in message 1"):
        said(shy, conversation)


@pytest.mark.parametrize("value", [False, None, 0, 0.0, "", [], {}])
def test_a_template_that_omits_empty_values_is_refused(value):
    source = WHOLE.replace(
        "{{ call.function.arguments | tojson }}",
        "{% for k, v in call.function.arguments | items %}{{ k }}={{ v | tojson if v }}{% endfor %}",
    )
    calls = [{"type": "function", "function": {"name": "rain", "arguments": {"k": value}}}]
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    conversation = Conversation([{"role": "user", "content": "雨?"}, answer])
    if value in ("", [], {}) and not isinstance(value, (bool, int, float)):
        said(source, conversation)  # these say nothing that could be looked for
        return
    with pytest.raises(RowError, match="the arguments of a call in message 1"):
        said(source, conversation)
    said(source.replace("if v }}", "}}"), conversation)
