"""Evaluation asks as training teaches: conversations, tools and reasoning in the templates of all families."""

from __future__ import annotations

import re
from typing import Any

import pytest

from eval.run_task import prepare
from eval.tasks import TASKS
from tests.support import eval_checkpoints
from tests.support.data_tools import tokenizer
from tests.support.template_table import CASES, DAY, families, source, template_of, turns
from train.data.templates import prompt_text, render, resolve
from train.data.tokenize import read_row
from zerotune.common.errors import UserError
from zerotune.data.completeness import NO_EARLIER_REASONING, NO_TOOLS
from zerotune.data.conversations import Conversation, Message
from zerotune.data.fields import RowError
from zerotune.data.raw_row import Row
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Generate, Generated, Score, Scored

U, A = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}
TOOL = {"type": "function", "function": {"name": "weather", "description": "D", "parameters": {"type": "object"}}}
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"x": 1}}}],
}
RESULT = {"role": "tool", "content": "7"}
TOOL_TALK = {"messages": [U, CALL, RESULT, A], "tools": [TOOL]}


class Texts:
    """A tokenizer whose tokens are characters, so that ids show the text."""

    is_fast, eos_token_id, bos_token_id, pad_token_id, eos_token, unk_token = False, None, None, None, "<EOS>", None

    def __init__(self) -> None:
        self.rendering: Any = tokenizer(bos_token="<BOS>", eos_token="<EOS>")
        self.added_tokens_decoder: dict[int, Any] = {}

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": list(map(ord, text))}

    def get_vocab(self) -> dict[str, int]:
        return {}

    def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
        return self.rendering.apply_chat_template(*arguments, **options)


def text(ids: tuple[int, ...]) -> str:
    return "".join(map(chr, ids))


def prompter(template: str, **more: Any) -> Prompter:
    return Prompter(Texts(), template, False, None, 8, 0, (), "tiny", day=DAY, **more)


@pytest.mark.parametrize("name", families())
def test_prompt_and_answer_are_those_of_training(name: str) -> None:
    """The answer: of the last turn, wherever training learns it behind the prompt that the model is asked with."""
    using = prompter(source(name))
    for case, talk in CASES.items():
        *before, last = talk.messages
        try:
            expected = prompt_text(template_of(name), Conversation(before, talk.tools))
        except RowError:
            with pytest.raises(UserError, match="rejects this conversation"):
                using.chat_prompt(before, talk.tools)
            continue
        assert text(using.chat_prompt(before, talk.tools)) == expected, case
        learned = turns(name, case)
        if isinstance(learned, str) or learned[-1].before != learned[-1].asked:
            continue
        given = [{**message, "learned": False} if message["role"] == "assistant" else message for message in before]
        (passage,) = using.assistant_turns([*given, last], talk.tools)
        assert text(passage.ids[: passage.first]) == learned[-1].before, case
        ending = ("<|user|>", "<|observation|>") if name == "glm4moe" else ()  # its own template ends no turn
        scored = text(passage.ids[passage.first :])
        assert learned[-1].learned in (scored, *(scored + mark for mark in ending)), case


@pytest.mark.parametrize("name", families())
def test_training_and_evaluation_find_the_same_template_problems(name: str) -> None:
    parts = {problem.kind: problem.part for problem in (NO_TOOLS, NO_EARLIER_REASONING)}
    template, using = template_of(name), prompter(source(name))
    for case, talk in CASES.items():
        question, left = Conversation(talk.messages[:-1], talk.tools), set[str]()
        try:
            using.chat_prompt(question.messages, question.tools)
            found = {parts.get(problem, problem) for problem in using.take_template_problems()}
            render(template, question, left)
        except UserError:
            continue  # the template rejects the conversation
        except RowError as refused:
            left |= {re.sub(r" in message \d+", "", str(refused))}
            assert left <= found, case
        else:
            assert left == found, case


SYSTEM_TALK = [{"role": "system", "content": "S0"}, U]
THOUGHT_TALK = [U, {**A, "reasoning_content": "T"}, U]
# As Mistral's models write system messages and tools: before the last user message.
MISTRAL = """{% set talk = messages[1:] if messages[0].role == 'system' else messages %}{% for m in talk %}
{%- if m.role == 'user' %}{% if loop.last and tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}{% endif %}
{{- '[INST] ' }}{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}
{{- m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"""
TWICE = "{% for m in messages %}{{ m.content * 2 }}{% endfor %}"
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "messages", "tools", "problem"),
    [
        (NO_SYSTEM, SYSTEM_TALK, None, "the chat template leaves out what the system says"),
        (NO_SYSTEM, [U], [TOOL], "the chat template writes no tools"),
        (source("gemma3"), [U], [TOOL], "the chat template writes no tools"),
        (source("gemma3"), SYSTEM_TALK, None, None),
        (source("qwen3"), THOUGHT_TALK, None, "the chat template leaves out the reasoning of earlier turns"),
        (source("qwen3"), SYSTEM_TALK, [TOOL], None),
        (source("llama3"), [U], [TOOL], "the chat template writes no tools"),
        (MISTRAL, SYSTEM_TALK, [TOOL], None),
        (MISTRAL, [*SYSTEM_TALK, A, U], [TOOL], None),
        (MISTRAL, [U, {**CALL, "content": ""}, RESULT], [TOOL], "the chat template writes no tools"),
        (MISTRAL, THOUGHT_TALK, None, None),  # written into the content
        (TWICE, [U], None, "the chat template writes what the user says more than once"),
    ],
)  # fmt: skip
def test_parts_that_a_template_does_not_write_are_found(
    template: str, messages: list[Message], tools: Any, problem: str | None
) -> None:
    using = prompter(template)
    using.chat_prompt(messages, tools)
    assert using.take_template_problems() == ({problem} if problem else set())
    using.chat_prompt([U])
    using.take_template_problems()
    assert not using.take_template_problems()


def test_restored_reasoning_is_no_problem() -> None:
    using = prompter(source("deepseek_r1_distill"))
    (passage,) = using.assistant_turns([U, {**A, "reasoning_content": "T"}])
    assert "T\n</think>" in text(passage.ids[passage.first :])
    assert not using.take_template_problems()


def chatml(**more: Any) -> Prompter:
    return prompter(eval_checkpoints.CHATML, **more)


def item(task: str, row: dict[str, Any]) -> Any:
    return TASKS[task].load(Row("rows.jsonl", 3, row))


def test_conversations_with_tools_use_the_tool_template() -> None:
    own = prompter("{{ messages[0].content }}", tool_template="{{ tools | length }} tools: {{ messages[0].content }}")
    assert text(own.chat_prompt([U])) == "Q?"
    assert text(own.chat_prompt([U], [TOOL])) == "1 tools: Q?"


def test_a_conversation_without_a_system_message_gets_that_of_training() -> None:
    system: Message = {"role": "system", "content": "Be kind."}
    own, plain = chatml(system_prompt="Be kind."), chatml()
    assert (
        own.chat_prompt([U]) == plain.chat_prompt([system, U]) == own.chat_prompt([system, U]) != plain.chat_prompt([U])
    )
    assert own.assistant_turns([U, A]) == plain.assistant_turns([system, U, A])
    row = read_row(Row("f", 1, {"messages": [U, A]}), "chat", {}, "Be kind.")
    assert row.messages == [system, U, A]


def test_raw_writes_what_the_named_template_writes() -> None:
    using = Prompter(Texts(), None, True, None, 8, 0, (), "tiny")
    template = resolve("raw", tokenizer(eos_token="<EOS>"))
    messages: list[Message] = [U, {**CALL, "content": ""}, RESULT, {**A, "reasoning_content": "T"}, U]
    assert text(using.chat_prompt(messages, [TOOL])) == prompt_text(template, Conversation(messages, [TOOL]))


def test_only_turns_that_training_learns_are_scored() -> None:
    row = {"messages": [U, {**A, "content": "no", "weight": 0}, U, {**A, "train": True}]}
    (request,) = TASKS["perplexity"].ask(item("perplexity", row), chatml())
    assert isinstance(request, Score)
    assert text(request.continuation_ids).startswith("A.")
    assert "no" in text(request.prefix_ids)
    sample = TASKS["perplexity"].score(item("perplexity", row), [Scored(-2.0, 4, request.bytes)])
    assert (sample.values["words"], sample.values["bytes"]) == (1, 2)


@pytest.mark.parametrize("name", ["qwen3", "llama3", "phi3"])
def test_a_first_turn_of_the_assistant_is_only_read(name: str) -> None:
    """Many templates render no prompt for it, as they refuse an empty conversation."""
    row = {"messages": [{**A, "content": "Hello!"}, U, A, U, A], "id": 1}
    using = prompter(source(name))
    assert len(TASKS["perplexity"].ask(item("perplexity", row), using)) == 2
    (request,) = TASKS["dialogue"].ask(item("dialogue", row), using)
    assert isinstance(request, Generate)
    assert "Hello!" in text(request.prefix_ids)
    assert item("qa", row).left_out == ("column id", "first turns of the assistant, which answer nothing")
    with pytest.raises(RowError, match="no assistant message after another one to score"):
        item("perplexity", {"messages": [A]})


def test_calls_and_reasoning_are_scored_with_their_bytes() -> None:
    row = {**TOOL_TALK, "messages": [U, CALL, RESULT, {**A, "reasoning": "Tü"}]}
    requests = TASKS["perplexity"].ask(item("perplexity", row), prompter(source("qwen3")))
    assert [isinstance(request, Score) for request in requests] == [True, True]
    call, answer = (request for request in requests if isinstance(request, Score))
    assert '"weather"' in text(call.continuation_ids)
    assert call.bytes == len('{"name": "weather", "arguments": {"x": 1}}')
    assert "Tü\n</think>\n\nA." in text(answer.continuation_ids)
    assert answer.bytes == len("Tü\nA.".encode())


def test_a_template_without_reasoning_cannot_score_it() -> None:
    row = {"messages": [U, {**A, "reasoning": "T"}]}
    drops = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    with pytest.raises(UserError, match=r"^rows\.jsonl:3: tiny: its chat template leaves out the reasoning"):
        prepare(TASKS["perplexity"], [item("perplexity", row)], prompter(drops))


@pytest.mark.parametrize("task", ["qa", "rouge", "bleu"])
def test_the_reference_is_the_last_answer_that_counts(task: str) -> None:
    row = {"messages": [U, {**A, "content": "<think>T</think>\n\nA."}, U, {**A, "content": "no", "weight": 0}, U]}
    found = item(task, row)
    (request,) = TASKS[task].ask(found, chatml())
    assert isinstance(request, Generate)
    assert text(request.prefix_ids).count("Q?") == 1
    assert TASKS[task].score(found, [Generated("A.")]).shown["reference"] == "A."
    with pytest.raises(RowError, match="the last answer calls a tool"):
        item(task, {"messages": [U, CALL], "tools": [TOOL]})


def test_tools_are_in_the_prompt_of_a_question() -> None:
    for task in ("qa", "samples"):
        request = TASKS[task].ask(item(task, TOOL_TALK), prompter(source("qwen3")))[0]
        assert isinstance(request, Generate)
        assert text(request.prefix_ids).count('"weather"') == 2  # its schema, and the call before the answer


def test_a_dialogue_generates_only_learned_text_turns() -> None:
    unmarked = {**A, "content": "as it stands", "weight": 0}
    task, found = (
        TASKS["dialogue"],
        item("dialogue", {**TOOL_TALK, "messages": [*TOOL_TALK["messages"], U, unmarked, U, A]}),
    )
    using = prompter(source("qwen3"))
    assert task.follow is not None
    (first,) = task.ask(found, using)
    (second,) = task.follow(found, [Generated("own")], using)
    assert not task.follow(found, [Generated("own"), Generated("own")], using)
    assert isinstance(first, Generate)
    assert isinstance(second, Generate)
    assert text(first.prefix_ids).count("<tool_response>") == 1
    assert "own<|im_end|>" in text(second.prefix_ids)
    assert "as it stands<|im_end|>" in text(second.prefix_ids)
    sample = task.score(found, [Generated("A."), Generated("A.")])
    assert [turn["reference"] for turn in sample.shown["turns"]] == ["A.", "A."]


def test_a_pair_is_read_with_its_tools() -> None:
    pair = {"prompt": [U], "chosen": [A], "rejected": [{**A, "content": "B."}], "tools": [TOOL]}
    using = prompter(source("qwen3"), labels={0: "LABEL_0"})
    requests = TASKS["reward_model"].ask(item("reward_model", pair), using)
    assert all('"weather"' in text(request.prefix_ids) for request in requests)


def test_a_template_of_content_parts_gets_parts() -> None:
    parts = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    assert text(prompter(parts).chat_prompt([U])) == "Q?"


def test_a_row_that_a_template_refuses_is_named() -> None:
    refuses = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0].content }}"
    )
    row = {"system": "S", "question": "Q?", "answer": "A."}
    with pytest.raises(
        UserError, match=r"^rows\.jsonl:3: tiny: its chat template rejects this conversation: no system"
    ):
        prepare(TASKS["qa"], [item("qa", row)], prompter(refuses))
