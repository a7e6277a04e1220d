"""CMMLU: rows from the published folder, prompts as lm-evaluation-harness writes them, choices, letters, groups."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from eval.config import parse
from eval.distributed import Ranks
from eval.evaluation import evaluate
from eval.protocols import Sample
from eval.tasks import cmmlu
from eval.tasks.cmmlu_subjects import SUBJECTS
from tests.support import eval_checkpoints
from zerotune.common.errors import UserError
from zerotune.data import hub
from zerotune.data.hub import Hub
from zerotune.data.rows import load, local
from zerotune.inference.prompt import Prompter
from zerotune.inference.requests import Generate, Generated, Score, Scored

HEADER = ",Question,A,B,C,D,Answer\n"
PROMPT = """以下是关于农学的单项选择题，请直接给出正确答案的选项。

问题0
A. 甲0
B. 乙
C. 丙
D. 丁
答案： A

问题1
A. 甲1
B. 乙
C. 丙
D. 丁
答案： B

试题0
A. 甲0
B. 乙
C. 丙
D. 丁
答案："""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two subjects; the questions of one have a space to be taken off."""
    for split, word, count in (("dev", "问题", 5), ("test", "试题", 3)):
        (tmp_path / split).mkdir()
        for subject in ("agronomy", "chinese_history"):
            rows = [f"{k}, {word}{k} ,甲{k},乙,丙,丁,{'ABCD'[k % 4]}\n" for k in range(count)]
            (tmp_path / split / f"{subject}.csv").write_text(HEADER + "".join(rows), encoding="utf-8")
    return tmp_path


def prompter(raw: bool = False) -> Prompter:
    return Prompter(eval_checkpoints.tokenizer(), eval_checkpoints.CHATML, raw, None, 8, 0, (), "tiny")


def questions(folder: Path, shots: int = 2) -> list[cmmlu.MultipleChoiceItem]:
    return cmmlu.arrange(load(local(str(folder)), cmmlu.load), shots)


def test_the_prompt_is_that_of_lm_evaluation_harness(folder: Path) -> None:
    words = prompter()
    requests = cmmlu.ask_letters(questions(folder)[0], words)
    assert all(isinstance(request, Score) for request in requests)
    assert [words.tokenizer.decode(request.prefix_ids) for request in requests] == [PROMPT] * 4
    assert [words.tokenizer.decode(r.continuation_ids) for r in requests if isinstance(r, Score)] == [
        " A",
        " B",
        " C",
        " D",
    ]


def test_generation_asks_the_same_text_as_the_users_turn(folder: Path) -> None:
    words = prompter()
    (request,) = cmmlu.ask_generated(questions(folder)[0], words)
    assert isinstance(request, Generate)
    asked = words.tokenizer.decode(request.prefix_ids)
    assert asked == f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"


def test_examples_are_of_the_same_subject_and_are_not_asked(folder: Path) -> None:
    asked = questions(folder, shots=5)
    assert [(q.subject, q.id.rpartition("/")[2]) for q in asked] == [
        (subject, f"{subject}.csv:{line}") for subject in ("agronomy", "chinese_history") for line in (2, 3, 4)
    ]
    assert all(SUBJECTS[q.subject].chinese in q.context and q.context.count("答案：") == 5 for q in asked)
    assert all("问题" not in q.context for q in questions(folder, shots=0))


def test_missing_examples_are_said(folder: Path) -> None:
    (folder / "dev" / "agronomy.csv").unlink()
    with pytest.raises(UserError, match=r"0 of 5 example rows for agronomy: .*dev/agronomy.csv.*cmmlu_0shot"):
        questions(folder, shots=5)
    assert len(questions(folder, shots=0)) == 6


@pytest.mark.parametrize(
    ("file", "row", "reason"),
    [
        ("test/alchemy.csv", "0,q,a,b,c,d,A\n", r"alchemy.csv:2: alchemy is none of CMMLU's 67 subjects"),
        ("test/arts.csv", "0,q,a,b,c,d,E\n", r"arts.csv:2: Answer is 'E', not A, B, C or D"),
        ("test/arts.csv", "0,q,a,,c,d,A\n", r"arts.csv:2: field `B` is empty"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, file: str, row: str, reason: str) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / file).write_text(HEADER + row, encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        load(local(str(tmp_path)), cmmlu.load)


def test_the_most_probable_letter_is_the_choice(folder: Path) -> None:
    question = questions(folder)[1]
    assert question.answer == "B"
    right = cmmlu.score_letters(question, [Scored(p, 1) for p in (-3.0, -1.0, -2.0, -1.0)])
    assert right.values == {"accuracy": 1.0}
    assert right.shown["chosen"] == "B"
    wrong = cmmlu.score_letters(question, [Scored(p, 1) for p in (-3.0, -4.0, -2.0, -1.0)])
    assert wrong.values == {"accuracy": 0.0}
    assert right.groups == {"subject": "agronomy", "category": "other"}
    assert cmmlu.score_letters(questions(folder)[3], [Scored(0.0, 1)] * 4).groups == {
        "subject": "chinese_history",
        "category": "humanities",
        "across categories": "China-specific",
    }


@pytest.mark.parametrize(("text", "values"), [("B", (1, 0)), ("选C。", (0, 0)), ("不知道", (0, 1))])
def test_generated_answers_without_a_letter_are_counted_apart(
    folder: Path, text: str, values: tuple[float, float]
) -> None:
    scored = cmmlu.score_generated(questions(folder)[1], [Generated(text)])
    assert (scored.values["accuracy"], scored.values["no_letter"]) == values


def test_the_table_counts_every_subject_the_same() -> None:
    def samples(subject: str, *right: float) -> list[Sample]:
        return [Sample("x", {"accuracy": value}, {}, {"subject": subject}) for value in right]

    (table,) = cmmlu.tables(samples("agronomy", 1, 1, 1, 0) + samples("chinese_history", 0) + samples("arts", 1))
    assert {part: (count, value) for part, count, value in table.rows} == {
        "all": (3, pytest.approx(1.75 / 3)),
        "other": (1, 0.75),
        "humanities": (2, 0.5),
        "China-specific": (1, 0.0),
    }


def test_subjects_and_categories_are_those_of_the_paper() -> None:
    assert len(SUBJECTS) == 67
    assert Counter(subject.category for subject in SUBJECTS.values()) == {
        "STEM": 17, "humanities": 13, "social science": 22, "other": 15,
    }  # fmt: skip
    assert sum(subject.is_china_specific for subject in SUBJECTS.values()) == 15


def test_the_published_folder_is_read_whole(shared_data: Path) -> None:
    asked = cmmlu.arrange(load(local(str(shared_data / "cmmlu")), cmmlu.load), cmmlu.SHOTS)
    assert len({question.subject for question in asked}) == 10
    assert len(asked) == 1918
    assert {path.stem for path in (shared_data / "cmmlu" / "dev").iterdir()} == set(SUBJECTS)


def test_a_whole_evaluation(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint = eval_checkpoints.save(tmp_path_factory.mktemp("checkpoint") / "model", context_tokens=2048)
    tasks = "cmmlu,cmmlu_0shot,cmmlu_generation"
    words = ["--model", str(checkpoint), "--tasks", tasks, "--data", str(folder), "--max_new_tokens", "3"]
    found = evaluate(parse([*words, "--precision", "fp32"]), Ranks(0, 1, torch.device("cpu")))
    five, none, generated = found.result.tasks
    assert (five.samples, none.samples, generated.samples) == (6, 6, 6)
    assert {(group.group, group.name) for group in five.metrics[0].groups} == {
        ("subject", "agronomy"),
        ("subject", "chinese_history"),
        ("category", "other"),
        ("category", "humanities"),
        ("across categories", "China-specific"),
    }
    (question, *_) = questions(folder, shots=5)
    sample = found.samples["cmmlu"]["model"][0]
    network, encode = LlamaForCausalLM.from_pretrained(checkpoint).eval(), eval_checkpoints.tokenizer()
    plain = {
        letter: float(
            eval_checkpoints.log_probs(network, encode(f"{question.context}{question.text} {letter}")["input_ids"])[
                -len(encode(f" {letter}")["input_ids"]) :
            ].sum()
        )
        for letter in "ABCD"
    }
    assert sample.shown["log_probs"] == pytest.approx(plain, abs=1e-4)


def test_hub_rows_carry_subject_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder in the layout of the hub's converted copies stands in for it."""
    import pyarrow
    from pyarrow import parquet

    row = {"Question": "q", "A": "a", "B": "b", "C": "c", "D": "d", "Answer": "A"}
    for split in ("dev", "test"):
        place = tmp_path / "agronomy" / split
        place.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist([row] * 5), place / "0000.parquet")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = Hub(str(tmp_path), "dev,test", "agronomy", files=cmmlu.SOURCE.files)
    asked = cmmlu.arrange(load(hub.from_hub(source), cmmlu.load), cmmlu.SHOTS)
    assert [question.id for question in asked] == [f"hub:{tmp_path}/agronomy/test:{k}" for k in range(1, 6)]


class TestChoices:
    """`Prompter.choices` splits as lm-evaluation-harness does."""

    @staticmethod
    def harness(tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """What its `_encode_pair` states: trailing spaces go to the continuation; whole, less the context's length."""
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        given = tokenizer(stripped)["input_ids"]
        return given, tokenizer(stripped + continuation)["input_ids"][len(given) :]

    @given(
        st.text(alphabet="The quick brown 狐狸，\n ", min_size=1, max_size=20).filter(str.strip),
        st.text("ab 狐", min_size=1),
    )
    def test_as_the_harness(self, context: str, continuation: str) -> None:
        words = prompter()
        prefix, (tail,) = words.choices(context, [continuation])
        expected_prefix, expected = self.harness(words.tokenizer, context, continuation)
        assert list(prefix) == expected_prefix
        assert tail
        assert not expected or list(tail) == expected
