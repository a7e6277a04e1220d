"""GSM8K: the conversation with retries and a calculator, three scores, and the chain of thought as in the harness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.config import parse
from eval.distributed import Ranks
from eval.evaluation import evaluate
from eval.protocols import Sample
from eval.tasks import gsm8k, gsm8k_cot
from tests.support import eval_checkpoints
from zerotune.common.errors import UserError
from zerotune.data.rows import load, local
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Answer, Generate, Generated

PLAIN, WITH_TOOL = gsm8k.TASK, gsm8k.CALCULATOR
PROBLEM = gsm8k.Problem("test.jsonl:1", "How many eggs?", "16 - 7 = 9\n#### 9", "9", "test")


def prompter(raw: bool = False) -> Prompter:
    return Prompter(eval_checkpoints.tokenizer(), eval_checkpoints.CHATML, raw, None, 100, 0, (2,), "tiny")


def said(number: Any) -> str:
    return f"```json\n{json.dumps({'answer': number, 'explanation': 'so', 'steps': ['a']})}\n```"


def played(task: Any, *outputs: str, finished: bool = True) -> tuple[list[Generate], Sample]:
    """The requests that a model gets which says these things, and the sample in the end."""
    words, answers, asked = prompter(), list[Answer](), list[Generate]()
    waiting, outputs_left = task.ask(PROBLEM, words), list(outputs)
    while waiting:
        (request,) = waiting
        asked.append(request)
        answers.append(Generated(outputs_left.pop(0), tokens=10, finished=finished))
        waiting = task.follow(PROBLEM, answers, words)
    assert not outputs_left, "it was not asked for all of them"
    return asked, task.score(PROBLEM, answers)


def text_of(request: Generate) -> str:
    return str(prompter().tokenizer.decode(request.prefix_ids))


@pytest.mark.parametrize(
    ("output", "scores"),
    [
        (said("9"), (1, 1, 1)),
        (said(9), (1, 1, 1)),
        (said(9.0), (0, 1, 1)),
        (said("$9"), (0, 1, 1)),
        (said("9 eggs"), (0, 1, 1)),
        (said("9.000001"), (0, 1, 1)),
        (said("10"), (0, 0, 0)),
        ("It is\n#### 9\nbye 3", (1, 1, 1)),
        ('{"answer": 9.00, "explanation": "1,234}', (0, 1, 1)),
        ('{"answer": \\boxed{9}}', (0, 1, 1)),
        ("```json\n{'Answer': '９'}\n```", (0, 1, 1)),
        (gsm8k.ASK.partition("\n\n")[2].replace("{{", "{").replace("}}", "}") + said(9), (1, 1, 1)),
        (said(9) + "\n" + said("9.0"), (1, 1, 1)),
        ("So it is $\\boxed{\\$9.00}$.", (0, 1, 1)),
        ("#### 1. First\n2 + 2 = 4\n#### Step 2\nso\n#### **9** eggs", (0, 1, 1)),
    ],
)
def test_an_answer_is_scored_as_a_string_and_as_a_number(output: str, scores: tuple[float, ...]) -> None:
    asked, sample = played(PLAIN, output)
    assert len(asked) == 1
    assert tuple(sample.values[key] for key in ("exact_match", "first_accuracy", "accuracy")) == scores
    assert sample.values["no_number"] == 0


def test_what_cannot_be_read_is_asked_again_with_a_word_on_why() -> None:
    asked, sample = played(PLAIN, "Nine, I guess", said("nine"), said("9.0"))
    assert sample.values["tries"] == 3
    assert [sample.values[key] for key in ("exact_match", "first_accuracy", "accuracy", "no_number")] == [0, 0, 1, 0]
    third = text_of(asked[2])
    assert third.startswith("<|im_start|>user\nSolve this math problem.")
    assert third.endswith(
        f"<|im_start|>assistant\nNine, I guess<|im_end|>\n<|im_start|>user\n{gsm8k.ASK_AGAIN}<|im_end|>\n"
        f"<|im_start|>assistant\n{said('nine')}<|im_end|>\n<|im_start|>user\n{gsm8k.ASK_AGAIN}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "output",
    [
        said(9) + said(10),
        '{"steps": [{"answer": 9}, {"answer": 4',
        '{"steps": [{"answer": 9}], "result": 4}',
        '{"answer": 9',
        '{"answer": "9 or 10"}',
        '{"answer": 9:30}',
        '{"answer": "9", "answer": "10"}',
    ],
)
def test_an_answer_that_is_not_one_whole_number_is_asked_again(output: str) -> None:
    _, sample = played(PLAIN, output, said(9))
    assert (sample.values["tries"], sample.values["accuracy"], sample.values["first_accuracy"]) == (2, 1, 0)


def test_three_tries_are_the_most_and_no_number_is_not_a_wrong_one() -> None:
    asked, sample = played(PLAIN, "?", "??", "???")
    assert len(asked) == 3
    assert sample.values["no_number"] == 1
    assert sample.values["accuracy"] == 0
    assert played(PLAIN, said("8"))[1].values["no_number"] == 0


def test_the_calculators_result_is_put_in_and_the_answer_goes_on() -> None:
    asked, sample = played(WITH_TOOL, "First <<16-7", " eggs, <<9*2=20", f" so {said(9)}")
    assert [request.stop_texts for request in asked] == [(">>",)] * 3
    assert "<<12*3>>" in text_of(asked[0])
    assert text_of(asked[1]).endswith("<|im_start|>assistant\nFirst <<16-7=9>>")
    assert text_of(asked[2]).endswith("<|im_start|>assistant\nFirst <<16-7=9>> eggs, <<9*2=18>>")
    assert [request.max_new_tokens for request in asked] == [100, 90, 80]
    assert sample.shown["outputs"] == [f"First <<16-7=9>> eggs, <<9*2=18>> so {said(9)}"]
    assert [sample.values[key] for key in ("accuracy", "tries", "calls", "failed_calls")] == [1, 1, 2, 0]


def test_a_call_that_is_no_sum_gets_an_error_and_goes_on() -> None:
    asked, sample = played(WITH_TOOL, "<<9**9**9", said(9))
    assert text_of(asked[1]).endswith("<<9**9**9=error>>")
    assert (sample.values["calls"], sample.values["failed_calls"]) == (1, 1)


def test_calls_are_bounded_in_each_try() -> None:
    loop = ["<<1+1"] * gsm8k.MAX_CALLS
    asked, sample = played(WITH_TOOL, *loop, "<<1+1", *loop, said(9))
    assert asked[gsm8k.MAX_CALLS].stop_texts == ()  # the last stretch has no calculator, so it comes to an end
    assert (sample.values["tries"], sample.values["calls"]) == (2, 2 * gsm8k.MAX_CALLS)
    assert sample.values["accuracy"] == 1


def test_a_call_cut_off_by_the_length_limit_is_none() -> None:
    _, sample = played(WITH_TOOL, *["<<1+1"] * 3, finished=False)
    assert (sample.values["tries"], sample.values["calls"]) == (3, 0)


def test_without_the_tool_nothing_is_stopped_or_filled_in() -> None:
    asked, sample = played(PLAIN, f"<<1+1>> {said(9)} <<2")
    assert asked[0].stop_texts == ()
    assert "<<" not in text_of(asked[0])
    assert sample.values["calls"] == 0


def test_a_conversation_that_no_longer_fits_is_scored_as_it_stands() -> None:
    sample = WITH_TOOL.score(PROBLEM, [Generated("<<16-7")])
    assert sample.shown["outputs"] == ["<<16-7=9>>"]
    assert sample.values["no_number"] == 1


def files(folder: Path, **rows: Sequence[dict[str, str]]) -> str:
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    return str(folder)


ROWS = [{"question": f"Q{k}?", "answer": f"{k}+1=<<{k}+1={k + 1}>>{k + 1}\n#### {k + 1}"} for k in range(7)]


def test_rows_of_train_files_are_examples_not_questions(tmp_path: Path) -> None:
    folder = files(tmp_path, train_first7=ROWS, test=ROWS[:2])
    assert [p.id.rpartition("/")[2] for p in gsm8k.arrange(load(local(folder), gsm8k.load))] == [
        "test.jsonl:1",
        "test.jsonl:2",
    ]
    only_train = str(tmp_path / "train_first7.jsonl")
    assert len(gsm8k.arrange(load(local(only_train), gsm8k.load))) == 7
    first, second = gsm8k_cot.arrange(load(local(folder), gsm8k_cot.load))
    (request,) = gsm8k_cot.ask(second, prompter())
    assert isinstance(request, Generate)
    shots = "".join(f"Question: Q{k}?\nAnswer: {k}+1=<<{k}+1={k + 1}>>{k + 1}\n#### {k + 1}\n\n" for k in range(5))
    assert text_of(request) == f"{shots}Question: Q1?\nAnswer:"
    assert request.stop_texts == ("Question:", "</s>", "<|im_end|>")
    assert first.id.endswith("test.jsonl:1")


def test_missing_examples_are_said(tmp_path: Path) -> None:
    rows = load(local(files(tmp_path, test=ROWS)), gsm8k_cot.load)
    with pytest.raises(UserError, match="gsm8k_cot: 0 of 5 example rows: name a folder"):
        gsm8k_cot.arrange(rows)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Q?", "answer": "9"}, "answer does not end with ####"),
        ({"question": "Q?", "answer": "#### nine"}, "answer does not end with ####"),
        ({"question": " ", "answer": "#### 9"}, "field `question` is empty"),
        ({"question": "Q?"}, "field `answer` is missing"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, str], reason: str) -> None:
    with pytest.raises(UserError, match=f"test.jsonl:1: {reason}"):
        load(local(files(tmp_path, test=[row])), gsm8k.load)


@pytest.mark.parametrize(
    ("output", "scores"),
    [
        (" 16-7=9\n#### 9", (1, 1, 1, 0)),
        (" #### 9.", (1, 1, 1, 0)),
        (" #### $9", (0, 1, 1, 0)),  # the harness's strict pattern takes no $
        (" #### 9.0", (0, 0, 1, 0)),
        (" so it is 9 eggs", (0, 1, 1, 1)),
        (" #### 8 or 9", (0, 1, 0, 1)),  # two numbers: neither is the answer
        (" nothing", (0, 0, 0, 1)),
        (" That is 3/9.", (0, 1, 0, 1)),  # a third, though the harness's flexible pattern sees a 9
        (" so \\boxed{9.0} eggs and 2 hens", (0, 0, 1, 1)),
        (" #### 1. Count\n#### 9", (0, 1, 1, 0)),
    ],
)
def test_chains_of_thought_are_matched_as_in_the_harness(output: str, scores: tuple[float, ...]) -> None:
    sample = gsm8k_cot.score(gsm8k_cot.FewShotItem(PROBLEM, ""), [Generated(output)])
    assert tuple(sample.values.values()) == scores
    assert list(sample.values) == ["strict_match", "flexible_match", "accuracy", "no_mark"]


def test_a_whole_evaluation(tmp_path: Path) -> None:
    """A random model gives no number: three tries each, all read off one run."""
    checkpoint = eval_checkpoints.save(tmp_path / "model", context_tokens=4096)
    (tmp_path / "data").mkdir()
    folder = files(tmp_path / "data", train=ROWS, test=ROWS[:2])
    tasks = "gsm8k,gsm8k_calculator,gsm8k_cot"
    words = ["--model", str(checkpoint), "--tasks", tasks, "--data", folder, "--max_new_tokens", "3"]
    found = evaluate(parse([*words, "--precision", "fp32"]), Ranks(0, 1, torch.device("cpu")))
    plain, tool, chain = found.result.tasks
    assert (plain.samples, tool.samples, chain.samples) == (2, 2, 2)
    assert [metric.name for metric in plain.metrics] == ["exact_match", "first_accuracy", "accuracy", "no_number"]
    assert [row[1] for row in plain.tables["model"][0].rows] == [3, 0, 0]
    assert len(found.samples["gsm8k"]["model"][0].shown["outputs"]) == 3


def test_the_published_rows_are_read_whole(shared_data: Path) -> None:
    asked = gsm8k_cot.arrange(load(local(str(shared_data / "gsm8k")), gsm8k_cot.load))
    assert len(asked) == 1319
    assert all(gsm8k_cot.score(q, [Generated(q.problem.solution)]).values["strict_match"] == 1 for q in asked)
    assert all(gsm8k_cot.score(q, [Generated(q.problem.solution)]).values["accuracy"] == 1 for q in asked)
