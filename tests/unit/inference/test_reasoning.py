"""Reasoning is set aside before any task scores, by the marks of every family, and shown."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import AddedToken

from eval.cached_model import CachedModel
from eval.config import parse
from eval.distributed import Ranks
from eval.evaluation import evaluate
from eval.report.text import markdown
from eval.tasks import gsm8k
from tests.support import eval_checkpoints
from zerotune.inference.prompt import Prompter
from zerotune.inference.reasoning import MARKS, Parts, closing_mark, cut_at_stop, decode, split, strip_reasoning
from zerotune.inference.requests import Answer, Generate, Generated, Request

FINAL = "<|channel|>final<|message|>"
HARMONY = "<|channel|>analysis<|message|>A or B?<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>Is it A?</think>B", ("Is it A?", "B", False)),
        ("\n<think>\nIs it A?\n</think>\n\nB\n", ("Is it A?", "B\n", False)),
        ("<think>\n\n</think>\n\nB", ("", "B", False)),
        ("<think>a</think><think>b</think> C", ("a\n\nb", "C", False)),
        ("<think>Is it A? No, </thin", ("Is it A? No, </thin", "", True)),
        ("Is it A?\n</think>\n\nB", ("Is it A?", "B", False)),  # a template's mark that the model has left out
        ("</think>\n\nB", ("", "B", False)),
        (f"{HARMONY}{FINAL}B", ("A or B?<|end|><|start|>".removesuffix("<|end|><|start|>"), "B", False)),
        (f"{FINAL}B", ("", "B", False)),
        ("<|channel|>analysis<|message|>A", ("A", "", True)),
        ("B", ("", "B", False)),
        ("  B", ("", "  B", False)),
        ("", ("", "", False)),
        ("Write `<think>` and </think> around it.", ("", "Write `<think>` and </think> around it.", False)),
        ("`<think>A</think>` is a mark", ("", "`<think>A</think>` is a mark", False)),
        ("```\n</think>\n```", ("", "```\n</think>\n```", False)),
        ("<thinker>A</thinker>", ("", "<thinker>A</thinker>", False)),
    ],
)
def test_reasoning_and_answer(text: str, parts: tuple[str, str, bool]) -> None:
    assert split(text) == Parts(*parts)


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_every_pair_of_marks(opening: str, closing: str) -> None:
    assert split(f"{opening}\nthought\n{closing}\nsaid") == Parts("thought", "said", False)
    assert split(f"thought{closing}said", closing) == Parts("thought", "said", False)
    assert split("thought", closing) == Parts("thought", "", True)


@given(st.text(max_size=20), st.text(max_size=20), st.sampled_from(MARKS))
def test_any_reasoning_is_set_aside_from_any_answer(thought: str, said: str, marks: tuple[str, str]) -> None:
    text = f"{marks[0]}{thought}{marks[1]}{said}"
    if marks[1] not in thought + marks[1][:-1] and not any(said.strip().startswith(m) for pair in MARKS for m in pair):
        assert split(text).answer == said.lstrip()
    assert split(said).answer in (said, said.lstrip()) or "<" in said or "[" in said or "◁" in said


def test_marks_of_every_template_that_trl_ships() -> None:
    """Reasoning that a template writes into the assistant's turn is what is set aside of it."""
    import trl

    seen = set()
    words = eval_checkpoints.tokenizer()
    thought = {"reasoning_content": "THOUGHT", "thinking": "THOUGHT", "reasoning": "THOUGHT"}
    asked: list[dict[str, Any]] = [{"role": "user", "content": "Q"}]
    answered_with = [*asked, {"role": "assistant", "content": "SAID", **thought}]
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        try:
            prompt, whole = (
                words.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=asks)
                for messages, asks in ((asked, True), (answered_with, False))
            )
        except TemplateError:  # some need a start token, or content in parts
            continue
        if "THOUGHT" in whole:
            seen.add(path.name.partition("_")[0].partition(".")[0])
            prompt = prompt.rpartition("<think>")[0] if prompt.rstrip().endswith("</think>") else prompt
            closing = closing_mark(words, words(prompt)["input_ids"])
            parts = split(whole[shared(prompt, whole) :], closing)
            assert parts.reasoning.startswith("THOUGHT"), path.name
            assert not re.search("SAID|assistant$", parts.reasoning), path.name
            assert parts.answer.startswith("SAID"), path.name
    assert {"glm4moe", "gptoss", "lfm2", "muse", "nemotron", "qwen3", "gemma4"} <= seen


def shared(one: str, other: str) -> int:
    """Characters with which both begin."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def with_special_marks(*marks: str) -> Any:
    words = eval_checkpoints.tokenizer()
    words.add_special_tokens({"additional_special_tokens": list(marks)})
    return words


def test_marks_that_are_special_tokens_are_seen_and_left_out() -> None:
    words = with_special_marks("[THINK]", "[/THINK]", "[INST]")
    ids = words("[THINK]It is A[/THINK]It is B[INST]", add_special_tokens=False)["input_ids"]
    assert words.decode(ids, skip_special_tokens=True) == "It is AIt is B"
    assert decode(words, ids) == "[THINK]It is A[/THINK]It is B"
    request = Generate(tuple(words("Q")["input_ids"]), 9, ())
    found = strip_reasoning(Generated(decode(words, ids)), request, words)
    assert isinstance(found, Generated)
    assert (found.text, found.reasoning) == ("It is B", "It is A")
    said = strip_reasoning(Generated("Say [THINK] first"), request, words)
    assert isinstance(said, Generated)
    assert said.text == "Say  first"  # a special token is no text, as in every other answer


def test_gpt_oss_channels() -> None:
    words = with_special_marks("<|channel|>", "<|message|>", "<|start|>", "<|end|>")
    ids = words(f"{HARMONY}{FINAL}B", add_special_tokens=False)["input_ids"]
    found = strip_reasoning(Generated(decode(words, ids)), Generate((1,), 9, ()), words)
    assert isinstance(found, Generated)
    assert (found.text, found.reasoning) == ("B", "A or B?")


def test_a_prompt_that_ends_in_an_opening_mark_has_begun_it() -> None:
    words = eval_checkpoints.tokenizer()
    for prompt, closing in {
        "assistant\n<think>\n": "</think>",
        "<think>\n\n</think>\n\n": "",
        "say <think> now": "",
    }.items():
        assert closing_mark(words, words(prompt)["input_ids"]) == closing


def test_stop_texts_stop_answers_and_no_reasoning() -> None:
    assert cut_at_stop("<think>a\nb</think>c\nd", ["\n"], "") == "<think>a\nb</think>c"
    assert cut_at_stop("<think>a\nb", ["\n"], "") is None
    assert cut_at_stop("<think>\n\n</think>\n\nc\nd", ["\n"], "") == "<think>\n\n</think>\n\nc"
    assert cut_at_stop("a\nb</think>c\nd", ["\n"], "</think>") == "a\nb</think>c"
    assert cut_at_stop("c\nd", ["\n"], "") == "c"
    assert cut_at_stop("c", ["\n"], "") is None


def test_the_calculator_goes_on_behind_reasoning() -> None:
    words = Prompter(eval_checkpoints.tokenizer(), eval_checkpoints.CHATML, False, None, 100, 0, (2,), "tiny")
    problem = gsm8k.Problem("test.jsonl:1", "How many eggs?", "16 - 7 = 9\n#### 9", "9", "test")
    first = Generated("So <<16-7", 9, True, "<<1+1>> is 2", "<think><<1+1>> is 2</think>So <<16-7")
    (request,) = gsm8k.CALCULATOR.follow(problem, [first], words)  # type: ignore[misc]
    assert isinstance(request, Generate)
    text = words.tokenizer.decode(request.prefix_ids)
    assert text.endswith("<think><<1+1>> is 2</think>So <<16-7=9>>")
    last = Generated(' {"answer": 9}', 9, True)
    assert gsm8k.CALCULATOR.score(problem, [first, last]).values["accuracy"] == 1
    again = [Generated("?", 9, True, "Is it 9?", "<think>Is it 9?</think>?")]
    (request,) = gsm8k.TASK.follow(problem, again, words)  # type: ignore[misc]
    assert "Is it 9?" not in words.tokenizer.decode(request.prefix_ids)


TASK_FILE = "name: own\nkind: generate\nprompt: question\nreference: answer\nmetrics: [exact_match]\n"


def answered(monkeypatch: pytest.MonkeyPatch, folder: Path, says: str, *words: str) -> Any:
    """An evaluation of a model that says the same to everything."""

    def asked(self: CachedModel, requests: Sequence[Request], on_answer: Any) -> dict[Request, Answer]:
        return {request: Generated(says, 5, finished=False) for request in requests}

    monkeypatch.setattr(CachedModel, "_compute", asked)
    if not (folder / "model").exists():
        eval_checkpoints.save(folder / "model", context_tokens=2048)
    return evaluate(parse(["--model", str(folder / "model"), *words]), Ranks(0, 1, torch.device("cpu")))


ROWS: dict[str, list[dict[str, Any]]] = {
    "qa": [{"question": "Which?", "answer": "Paris"}],
    "own.yaml": [{"question": "Which?", "answer": "Paris"}],
    "classification_generation": [{"sentence": "s", "label": "Paris"}, {"sentence": "t", "label": "Rome"}],
    "gsm8k": [{"question": "How many?", "answer": "#### 7"}],
}
SAYS = {"gsm8k": ('{"answer": 8}', '{"answer": 7}')}


@pytest.mark.parametrize("task", ROWS)
def test_tasks_score_the_answer_and_show_the_reasoning(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.yaml").write_text(TASK_FILE)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    chosen = str(tmp_path / task) if task.endswith("yaml") else task
    words = ("--tasks", chosen, "--data", str(tmp_path / "rows.jsonl"))
    wrong, right = SAYS.get(task, ("Rome", "Paris"))
    found = answered(monkeypatch, tmp_path, f"<think>\n{wrong}\n</think>\n\n{right}", *words)
    ((samples,),) = [list(own.values()) for own in found.samples.values()]
    metric = found.result.tasks[0].metrics[0].name
    assert samples[0].values[metric] == 1
    assert samples[0].shown["reasoning"] == wrong
    assert f"- reasoning: {wrong[:4]}" in markdown(found).replace("\\", "")
    assert not found.result.tasks[0].only_reasoning
    cut = answered(monkeypatch, tmp_path, f"<think>\n{right}", *words)
    ((samples,),) = [list(own.values()) for own in cut.samples.values()]
    assert samples[0].values[metric] == 0
    assert len(cut.result.tasks[0].only_reasoning["model"]) == len(ROWS[task])
    assert "ended within the reasoning and count as no answer; raise --max_new_tokens" in markdown(cut).replace(
        "\\", ""
    )


def test_a_dialogue_does_not_carry_earlier_reasoning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    words = eval_checkpoints.tokenizer()

    def answer(self: CachedModel, requests: Sequence[Request], on_answer: Any) -> dict[Request, Answer]:
        asked.extend(words.decode(request.prefix_ids) for request in requests)
        return {request: Generated("<think>hidden</think>yes", 5) for request in requests}

    monkeypatch.setattr(CachedModel, "_compute", answer)
    eval_checkpoints.save(tmp_path / "model", context_tokens=2048)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}] * 2
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    arguments = ["--model", str(tmp_path / "model"), "--tasks", "dialogue", "--data", str(tmp_path / "rows.jsonl")]
    found = evaluate(parse(arguments), Ranks(0, 1, torch.device("cpu")))
    assert "assistant\nyes<|im_end|>" in asked[1]
    assert "hidden" not in asked[1]
    (sample,) = found.samples["dialogue"]["model"]
    assert sample.values["turn_match"] == 1
    assert sample.shown["reasoning"] == "hidden\n\nhidden"


def test_a_plain_answer_is_what_it_was() -> None:
    words = eval_checkpoints.tokenizer()
    answer = Generated(" yes\n", 3)
    assert strip_reasoning(answer, Generate((5,), 9, ()), words) is answer
    token = AddedToken("<think>", special=False)
    words.add_tokens([token])
    ids = words("<think> yes")["input_ids"]
    assert decode(words, ids) == words.decode(ids, skip_special_tokens=True)
