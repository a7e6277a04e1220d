"""Evaluation tasks as PPO's prompts and rewards: the task's own request, the task's own score."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from eval.tasks import gsm8k_cot
from tests.support.ranks import Solo
from train.config import DataConfig, SourceConfig
from train.data.prepare import Corpus, LabelSpec, prepare
from train.data.sources import find
from train.objectives.ppo.task import TaskRows
from train.objectives.ppo.trajectories import Trajectory
from train.registry import OBJECTIVES
from zerotune.common.errors import UserError
from zerotune.data.raw_row import Row
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Generate

PROBLEMS = [
    {"question": "Tom has 3 apples and buys 4 more. How many has he?", "answer": "3 + 4 = 7\n#### 7"},
    {"question": "A box holds 12 eggs. How many are in 3 boxes?", "answer": "12 * 3 = 36\n#### 36"},
]
CAPITALS = """\
name: capitals
kind: generate
prompt: What is the capital of {{ question }}?
reference: answer
stop: ["!"]
metrics: [contains, exact_match]
"""


class Place:
    """Rows in a file, read as a recipe's data is read."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.prompter = Prompter(tokenizer, tokenizer.chat_template, False, 2048, 32, 0, (), "tiny")

    def task(self, name: str, rows: list[dict[str, Any]], skip: bool = False) -> tuple[TaskRows, Corpus]:
        (self.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return self.of(name, "rows.jsonl", skip)

    def of(self, name: str, file: str, skip: bool = False) -> tuple[TaskRows, Corpus]:
        source = SourceConfig(str(self.folder / file), "qa")
        data = DataConfig(train=[source], cache_folder=str(self.folder / "cache"))
        corpus = prepare(data, self.tokenizer, 1, Solo(), LabelSpec(OBJECTIVES["ppo"].formats, asks=True))
        return TaskRows(name, [find(source, "data.train[0]")], self.prompter, skip), corpus

    def answered(self, row: int, text: str, *end: int) -> Trajectory:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Trajectory((1,), (*ids, *end), bool(end), f"{self.folder / 'rows.jsonl'}:{row + 1}")


@pytest.fixture
def place(tmp_path: Path, tiny_qwen2: Path) -> Place:
    return Place(tmp_path, AutoTokenizer.from_pretrained(tiny_qwen2))


def test_task_prompts_are_the_tasks_own_requests(place: Place) -> None:
    task, corpus = place.task("gsm8k_cot", PROBLEMS)
    prompts = {prompt.row: prompt for prompt in task.prompts(corpus.train) if prompt}
    assert len(prompts) == len(PROBLEMS)
    for line, problem in enumerate(PROBLEMS, start=1):
        row = f"{place.folder / 'rows.jsonl'}:{line}"
        (asked,) = gsm8k_cot.ask(gsm8k_cot.load(Row("f", line, problem)), place.prompter)
        assert isinstance(asked, Generate)
        assert prompts[row].ids == asked.prefix_ids
        assert prompts[row].stop_texts == asked.stop_texts == gsm8k_cot.STOP_TEXTS
        assert place.tokenizer.decode(prompts[row].ids) == f"Question: {problem['question']}\nAnswer:"


ANSWERS = {
    "right": (" 3 and 4 are 7\n#### 7", {"accuracy": 1.0, "strict_match": 1.0, "no_mark": 0.0}),
    "right without the mark": (" It is 7.", {"accuracy": 1.0, "strict_match": 0.0, "no_mark": 1.0}),
    "wrong": (" It is 8.\n#### 8", {"accuracy": 0.0, "strict_match": 0.0, "no_mark": 0.0}),
    "nothing": ("", {"accuracy": 0.0, "strict_match": 0.0, "no_mark": 1.0}),
    "right before the next question": (" 7\n\nQuestion: What is 1 + 1?\nAnswer: 2", {"accuracy": 1.0}),
    "wrong before the next question": (" 2\n\nQuestion: What is 3 + 4?\nAnswer: 7\n#### 7", {"accuracy": 0.0}),
}


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("is_ended", [True, False])
def test_task_metric_scores_responses(place: Place, case: str, is_ended: bool) -> None:
    text, expected = ANSWERS[case]
    task, _ = place.task("gsm8k_cot", PROBLEMS)
    trajectory = place.answered(0, text, *([place.tokenizer.eos_token_id] if is_ended or not text else []))
    for metric, value in expected.items():
        assert task.metric(metric, "key")([trajectory]) == [value], metric
    assert task.metric("", "key")([trajectory]) == task.metric("strict_match", "key")([trajectory])  # the first one


def test_reasoning_earns_no_reward(place: Place) -> None:
    task, _ = place.task("gsm8k_cot", PROBLEMS)
    said = ["<think> Is it 8? Question: what?</think> It is 7.", "<think> It is 7.", "<think> It is 7. </think> 8"]
    assert task.metric("accuracy", "key")([place.answered(0, text) for text in said]) == [1.0, 0.0, 0.0]


def test_task_scores_each_response_by_its_row(place: Place) -> None:
    task, _ = place.task("gsm8k_cot", PROBLEMS)
    trajectories = [place.answered(row, f" {number}") for row in (0, 1) for number in (7, 36)]
    assert task.metric("accuracy", "key")(trajectories) == [1.0, 0.0, 0.0, 1.0]


def test_task_ignores_a_readable_end_token(place: Place) -> None:
    """Some checkpoints end with a token that decoding does not leave out."""
    end = place.tokenizer("~", add_special_tokens=False)["input_ids"]
    place.prompter.stop_ids = (*place.prompter.stop_ids, *end)
    task, _ = place.task("qa", [{"question": "What is 3 + 4?", "answer": "7"}])
    assert task.metric("exact_match", "key")([place.answered(0, "7", *end)]) == [1.0]


def test_a_task_from_a_file(place: Place) -> None:
    (place.folder / "capitals.yaml").write_text(CAPITALS)
    rows = [{"question": "France", "answer": "Paris"}, {"question": "Japan", "answer": "Tokyo"}]
    task, corpus = place.task(str(place.folder / "capitals.yaml"), rows)
    asked = [place.tokenizer.decode(prompt.ids) for prompt in task.prompts(corpus.train) if prompt]
    assert len(asked) == 2
    assert any("user\nWhat is the capital of France?<|im_end|>" in text for text in asked)  # the chat template's
    trajectories = [
        place.answered(0, "It is Paris"),
        place.answered(1, "It is Paris"),
        place.answered(1, "Tokyo! Or not"),
    ]
    assert task.metric("", "key")(trajectories) == [1.0, 0.0, 1.0]
    assert task.metric("exact_match", "key")(trajectories) == [0.0, 0.0, 1.0]  # cut where the file says that it stops
    assert task.digest == hashlib.sha256(CAPITALS.encode()).hexdigest()


def test_rows_unreadable_by_the_task_are_reported_or_skipped(place: Place) -> None:
    rows = [*PROBLEMS, {"question": "What is 2 + 2?", "answer": "four"}]
    with pytest.raises(
        UserError, match=r"rows\.jsonl:3: answer does not end with #### and a number; so ppo\.task gsm8k_"
    ):
        place.task("gsm8k_cot", rows)
    task, corpus = place.task("gsm8k_cot", rows, skip=True)
    assert sum(prompt is None for prompt in task.prompts(corpus.train)) == 1


@pytest.mark.parametrize("name", ["gsm8k_cot", "qa", "capitals.yaml"])
@pytest.mark.parametrize("answer", [{}, {"answer": None}, {"answer": ""}])
def test_task_reports_rows_without_a_reference(place: Place, name: str, answer: dict[str, Any]) -> None:
    """PPO itself could ask it."""
    (place.folder / "capitals.yaml").write_text(CAPITALS)
    chosen = str(place.folder / name) if name.endswith("yaml") else name
    with pytest.raises(UserError, match=r"rows\.jsonl:3: .*(answer|reference).*cannot score a response to it"):
        place.task(chosen, [*PROBLEMS, {"question": "What is 2 + 2?", **answer}])


QUESTION = [{"question": "2 + 2?", "answer": "4", "label": "even", "sentence": "2 + 2", "A": "3", "text": "2 + 2 is 4"}]
NO_ANSWER = "does not generate one response per row, which PPO needs"
REFUSED: dict[str, tuple[Callable[[TaskRows, Corpus], object], str]] = {
    "gsm8k_kot": (lambda _task, _corpus: None, "ppo.task: unknown task gsm8k_kot; did you mean"),
    "nowhere.yaml": (lambda _task, _corpus: None, "ppo.task: nowhere.yaml: there is no such file"),
    "token_classification": (lambda _task, _corpus: None, f"ppo.task: token_classification {NO_ANSWER}"),
    "sequence_classification": (lambda _task, _corpus: None, f"ppo.task: sequence_classification {NO_ANSWER}"),
    "perplexity": (lambda task, corpus: list(task.prompts(corpus.train)), f"ppo.task: perplexity {NO_ANSWER}"),
    "samples": (lambda task, corpus: list(task.prompts(corpus.train)), f"ppo.task: samples {NO_ANSWER}"),
    "qa": (lambda task, _corpus: task.metric("accuracy", "key"), "key: metric: qa has no accuracy; it has exact_"),
    "bleu": (lambda task, _corpus: task.metric("", "key"), "key: metric: bleu has no metric of single answers"),
    "classification_generation": (
        lambda task, _corpus: task.metric("accuracy", "key"), "cannot score a response to one row without the other",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_unsuitable_tasks_and_metrics_are_refused(place: Place, name: str) -> None:
    ask, reason = REFUSED[name]
    with pytest.raises(UserError, match=re.escape(reason)):
        ask(*place.task(name, QUESTION))


def test_likelihood_tasks_are_refused(place: Place) -> None:
    choices = {"A": "3", "B": "4", "C": "5", "D": "6"}
    row = {"question": "2 + 2?", "answer": "B", "Question": "2 + 2?", "Answer": "B", **choices}
    (place.folder / "agronomy.jsonl").write_text(json.dumps(row) + "\n")
    task, corpus = place.of("cmmlu", "agronomy.jsonl")
    with pytest.raises(UserError, match=re.escape(f"ppo.task: cmmlu {NO_ANSWER}")):
        list(task.prompts(corpus.train))


def test_task_distinguishes_rows_on_one_line(place: Place) -> None:
    for indent in (None, 1):
        (place.folder / "rows.json").write_text(json.dumps(PROBLEMS, indent=indent))
        task, corpus = place.of("gsm8k_cot", "rows.json")
        prompts = [prompt for prompt in task.prompts(corpus.train) if prompt]
        assert len(prompts) == 2
        for prompt in prompts:
            (problem,) = [one for one in PROBLEMS if one["question"] in place.tokenizer.decode(prompt.ids)]
            number = problem["answer"].rpartition(" ")[2]
            ids = place.tokenizer(f" {number}", add_special_tokens=False)["input_ids"]
            assert task.metric("accuracy", "key")([Trajectory(prompt.ids, tuple(ids), False, prompt.row)]) == [1.0]


def test_task_prompts_have_messages_for_conversations(place: Place) -> None:
    for name, messages in (("qa", [{"role": "user", "content": "2 + 2?"}]), ("gsm8k_cot", [])):
        task, corpus = place.task(name, PROBLEMS if name == "gsm8k_cot" else QUESTION)
        for prompt in task.prompts(corpus.train):
            assert prompt is not None
            assert [dict(message) for message in prompt.messages] == messages
