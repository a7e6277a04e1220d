"""Tasks in YAML: understood as written, refused with file and line, and as good as built-in ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.config import parse
from eval.distributed import Ranks
from eval.evaluation import evaluate
from eval.metrics.contains import contains
from eval.protocols import Task
from eval.report import markdown
from eval.tasks.from_yaml import METRICS, task_from_yaml
from eval.tasks.task_file import COMMON, KINDS
from tests.support import eval_checkpoints
from zerotune.common.errors import UserError
from zerotune.data.fields import RowError
from zerotune.data.hub import Hub
from zerotune.data.raw_row import Row
from zerotune.data.rows import load, local
from zerotune.inference.prompt import find_prefix_pair
from zerotune.inference.requests import Generate, Generated, Score, Scored

ROOT = Path(__file__).resolve().parents[3]
ALONE = Ranks(0, 1, torch.device("cpu"))
GENERATE = """\
name: capitals
kind: generate
prompt: |
  What is the capital of {{ country }}?
reference: capital
metrics: [exact_match, contains]
"""
CHOICES = """\
name: quiz
kind: choices
prompt: "{{ question }}"
choices: ["{{ a }}", b, c]
answer: answer
"""


def made(tmp_path: Path, text: str, name: str = "task.yaml") -> Task[Any]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return task_from_yaml(tmp_path / name)


def item(task: Task[Any], **columns: Any) -> Any:
    return task.load(Row("rows.jsonl", 7, columns))


class FakePrompter:
    """A letter is a token; a chat is `<` question `>`."""

    max_new_tokens, stop_ids = 9, (0,)

    def chat_prompt(self, messages: Any) -> tuple[int, ...]:
        return tuple(map(ord, "".join(f"<{m['content']}>" for m in messages)))

    def assistant_turns(self, messages: Any) -> list[Any]:
        asked = self.chat_prompt(messages[:-1])
        return [Passage((*asked, *map(ord, messages[-1]["content"])), len(asked), len(messages[-1]["content"]))]

    def with_ends(self, continuations: Any, texts: Any) -> Any:
        return [(*ids, 0) for ids in continuations] if find_prefix_pair(texts) else continuations

    def document(self, text: str) -> Any:
        return Passage((1, *map(ord, text)), 1, len(text))


class Passage:
    def __init__(self, ids: tuple[int, ...], first: int, size: int) -> None:
        self.ids, self.first, self.bytes = ids, first, size


def shown(ids: tuple[int, ...]) -> str:
    return "".join(map(chr, ids))


def test_a_generated_answer_is_scored_against_the_column(tmp_path: Path) -> None:
    task = made(tmp_path, GENERATE)
    found = item(task, country="France", capital="Paris")
    (request,) = task.ask(found, FakePrompter())
    assert isinstance(request, Generate)
    assert shown(request.prefix_ids) == "<What is the capital of France?>"  # without the block's line break
    sample = task.score(found, [Generated("It is Paris.")])
    assert (sample.id, sample.values) == ("rows.jsonl:7", {"exact_match": 0.0, "contains": 1.0})
    assert [(m.name, m.is_share, m.higher_is_better) for m in task.metrics] == [
        ("exact_match", True, True),
        ("contains", True, True),
    ]


def test_the_best_of_several_references_counts(tmp_path: Path) -> None:
    task = made(tmp_path, GENERATE.replace("reference: capital", "reference: answers.text"))
    found = item(task, country="France", answers={"text": ["Lutetia", "Paris"]})
    assert task.score(found, [Generated("paris")]).values["exact_match"] == 1.0
    task = made(tmp_path, GENERATE.replace("reference: capital", 'reference: [capital, "old {{ capital }}"]'))
    found = item(task, country="France", capital="Paris")
    assert task.score(found, [Generated("Old Paris")]).values["exact_match"] == 1.0


def test_what_is_extracted_is_what_is_scored(tmp_path: Path) -> None:
    task = made(tmp_path, GENERATE + 'extract: "Answer: (\\\\w+)"\nsystem: "Be {{ mood }}."\nstop: ["\\n\\n"]\n')
    found = item(task, country="France", capital="Paris", mood="brief")
    (request,) = task.ask(found, FakePrompter())
    assert shown(request.prefix_ids).startswith("<Be brief.><What")
    assert request.stop_texts == ("\n\n",)
    right = task.score(found, [Generated("Answer: Rome? No. Answer: Paris, of course")])
    assert (right.values["exact_match"], right.shown["read"]) == (1.0, "Paris")
    assert task.score(found, [Generated("Paris")]).values == {"exact_match": 0.0, "contains": 0.0}


@pytest.mark.parametrize(
    ("answer", "place"),
    [("zwei", 2), ("two", 1), ("B", 1), ("c", 2), ("Ｂ", 1), (2, 2), ("2", 2), (2.0, 2), ("2.0", 2), ("1", 1), (0, 0)],
)
def test_the_right_choice_is_a_text_a_letter_or_a_number(tmp_path: Path, answer: Any, place: int) -> None:
    task = made(tmp_path, CHOICES)
    assert item(task, question="?", a="one", b="two", c="zwei", answer=answer).correct == place


@pytest.mark.parametrize("answer", ["2", 2])
def test_an_answer_that_may_be_a_text_or_a_number_is_refused(tmp_path: Path, answer: Any) -> None:
    task = made(tmp_path, CHOICES)
    message = r"^answer: '2' can mean the text of choice 0 \('2'\), a number from 0 \('zwei'\); use letters, .*int\] }}"
    with pytest.raises(RowError, match=message):
        item(task, question="?", a="2", b="two", c="zwei", answer=answer)
    with pytest.raises(RowError, match="can mean the text of choice 1"):
        item(task, question="?", a="B", b="A", c="C", answer="A")
    assert item(task, question="?", a="0", b="1", c="2", answer=answer).correct == 2  # both name the same
    with pytest.raises(RowError, match="'True' is neither a choice"):
        item(task, question="?", a="x", b="y", c="z", answer=True)


def test_rows_of_every_file_type_have_the_same_right_choice(tmp_path: Path) -> None:
    import csv

    import pyarrow
    from pyarrow import parquet

    task = made(tmp_path, CHOICES)
    for answers in ([2, 0, 1], ["C", "a", "y"]):
        rows = [{"question": "?", "a": "x", "b": "y", "c": "z", "answer": answer} for answer in answers]
        (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with (tmp_path / "r.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
        for name in ("r.jsonl", "r.csv", "r.parquet"):
            assert [item.correct for item in load(local(str(tmp_path / name)), task.load)] == [2, 0, 1], name
    (tmp_path / "r.csv").write_text("question,a,b,c,answer\n?,4,5,6,5\n?,1,2,3,1\n")
    with pytest.raises(UserError, match=r"r\.csv:3: answer: '1' can mean"):
        load(local(str(tmp_path / "r.csv")), task.load)


def test_the_right_choice_may_be_the_same_in_every_row(tmp_path: Path) -> None:
    task = made(tmp_path, CHOICES.replace("answer: answer", "answer: 2"))
    assert item(task, question="?", a="x", b="y", c="z").correct == 2


def test_choices_are_scored_by_likelihood(tmp_path: Path) -> None:
    task = made(tmp_path, CHOICES + "metrics: [accuracy, accuracy_by_byte]\ngroups: {level: level}\n")
    found = item(task, question="Q", a="x", b="a long one", c="y", answer="B", level=3)
    requests = task.ask(found, FakePrompter())
    assert [(shown(r.prefix_ids), shown(r.continuation_ids), r.bytes) for r in requests if isinstance(r, Score)] == [
        ("<Q>", "x", 1),
        ("<Q>", "a long one", 10),
        ("<Q>", "y", 1),
    ]
    sample = task.score(found, [Scored(-2.0, 1, 1), Scored(-5.0, 3, 10), Scored(-4.0, 1, 1)])
    assert sample.values == {"accuracy": 0.0, "accuracy_by_byte": 1.0}
    assert sample.groups == {"level": "3"}


def test_a_plain_prompt_stands_as_it_is_written(tmp_path: Path) -> None:
    task = made(tmp_path, CHOICES + "chat: false\n")
    requests = task.ask(item(task, question="Q:", a="x", b="y", c="xy", answer="A"), FakePrompter())
    assert [(shown(r.prefix_ids), shown(r.continuation_ids)) for r in requests if isinstance(r, Score)] == [
        ("\x01Q:", " x\0"),  # "x" begins "xy": each with its end
        ("\x01Q:", " y\0"),
        ("\x01Q:", " xy\0"),
    ]
    task = made(tmp_path, CHOICES + 'chat: false\nseparator: ""\n')
    (first, *_) = task.ask(item(task, question="问：", a="x", b="y", c="z", answer="A"), FakePrompter())
    assert isinstance(first, Score)
    assert shown(first.continuation_ids) == "x"


def test_the_source_stands_beside_the_file(tmp_path: Path) -> None:
    assert made(tmp_path, GENERATE).source is None
    assert made(tmp_path, GENERATE + "data: rows/*.jsonl\n").source == str(tmp_path / "rows/*.jsonl")
    assert made(tmp_path, GENERATE + "hub: {path: a/b, name: c}\n").source == Hub("a/b", "test", "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("reference: capital", "refrence: capital"), "task.yaml:5: refrence: unknown in a task of kind generate; did"),
        (("kind: generate", "kind: generated"), "task.yaml:2: kind: must be one of generate, choices, perplexity; did"),
        (("reference: capital\n", ""), "reference: is missing"),
        (
            ("metrics: [exact_match", "metrics: [exact"),
            "task.yaml:6: metrics: unknown metric exact; did you mean exact_",
        ),
        (("{{ country }}", "{{ country }"), "task.yaml:3: prompt: not a Jinja template"),
        (("name: capitals", "name: a/b"), "task.yaml:1: name: 'a/b' must be letters"),
        (("name: capitals", "name: 7"), "task.yaml:1: name: 7 must be text"),
        (("metrics:", "version: two\nmetrics:"), "task.yaml:6: version: 'two' must be a whole number"),
        (("metrics:", "chat: maybe\nmetrics:"), "chat: 'maybe' must be true or false"),
        (("metrics:", 'extract: "("\nmetrics:'), "extract: not a regular expression"),
        (("metrics:", "data: x\nhub: {path: y}\nmetrics:"), "hub: is given together with data"),
        (("metrics:", "hub: {paht: y}\nmetrics:"), "task.yaml:6: hub.paht: unknown key"),
        (("metrics:", "choices: [a]\nmetrics:"), "choices: unknown in a task of kind generate"),
        (("reference: capital", "reference: []"), "reference: is an empty list"),
        (
            ("reference: capital", "reference: [3]"),
            "task.yaml:5: reference[0]: 3 must be text: a column name or a template",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in GENERATE
    with pytest.raises(UserError) as refused:
        made(tmp_path, GENERATE.replace(*change))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"contry": "France", "capital": "Paris"}, "prompt: 'country' is undefined (columns: contry, capital)"),
        ({"country": "France", "capitol": "Paris"}, "reference: there is no column capital; did you mean capitol?"),
        ({"country": "France", "capital": None}, "reference: column capital is null"),
        ({"country": "France", "capital": " "}, "reference: is empty"),
        ({"country": "France", "capital": []}, "reference: the list is empty"),
        ({"country": "France", "capital": [{"a": 1}]}, "reference: the column holds an object, not text"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=re.escape(message)):
        item(made(tmp_path, GENERATE), **columns)


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ country.__init__.__globals__ }}", "{% for i in range(10**9) %}{% endfor %}"],
)
def test_templates_stay_in_their_sandbox(tmp_path: Path, template: str) -> None:
    task = made(tmp_path, GENERATE.replace("What is the capital of {{ country }}?", template))
    with pytest.raises(RowError, match="prompt: "):
        item(task, country="France", capital="Paris")


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("The answer is Paris.", "paris", 1.0),
        ("I like parties", "art", 0.0),
        ("我住在北京市。", "北京", 1.0),
        ("It costs 15", "5", 0.0),
        ("It costs -5", "5", 0.0),
        ("It costs 5.5", "5", 0.0),
        ("It costs 5.", "5", 1.0),
        ("约5个", "5", 1.0),
        ("anything", "", 0.0),
    ],
)
def test_contains(prediction: str, reference: str, expected: float) -> None:
    assert contains(prediction, reference) == expected


def test_it_works_like_a_built_in_task(tmp_path: Path) -> None:
    """Named, compared, with data of its own, beside a built-in one, and asking more than once."""
    rows = [{"question": f"Q{k}?", "a": "yes", "b": "no", "c": "maybe so", "answer": "B"} for k in range(5)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "asked.jsonl").write_text('{"question": "Who?"}\n')
    (tmp_path / "quiz.yaml").write_text(CHOICES + "data: quiz.jsonl\n")
    (tmp_path / "texts.yaml").write_text('name: texts\nkind: perplexity\ntext: "{{ question }} {{ a }}"\n')
    folders = [eval_checkpoints.save(tmp_path / f"model{seed}", seed=seed) for seed in (0, 1)]
    words = ["--model", folders[0], "--model", folders[1], "--precision", "fp32", "--max_new_tokens", 4]
    words += ["--tasks", f"{tmp_path}/quiz.yaml,samples,{tmp_path}/texts.yaml"]
    words += ["--data", f"{tmp_path}/asked.jsonl", "--data", f"texts={tmp_path}/quiz.jsonl"]
    words += ["--data", f"quiz={tmp_path}/quiz.jsonl"]
    found = evaluate(parse(list(map(str, words))), ALONE)
    quiz, samples, texts = found.result.tasks
    assert [task.name for task in (quiz, samples, texts)] == ["quiz", "samples", "texts"]
    assert sorted(Path(file).name for file in quiz.data) == ["quiz.jsonl", "quiz.yaml"]  # the definition is recorded
    assert texts.metrics[0].name == "perplexity"
    assert len(found.samples["quiz"]["model0"]) == 5
    assert "quiz, accuracy: " in markdown(found)


def test_two_tasks_of_one_name_and_built_in_names_are_refused(tmp_path: Path) -> None:
    for name, text in {"a": GENERATE, "b": GENERATE, "c": GENERATE.replace("capitals", "qa")}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    start = ["--model", "m", "--data", "x"]
    with pytest.raises(UserError, match="two tasks have the name capitals"):
        parse([*start, "--tasks", f"{tmp_path}/a.yaml,{tmp_path}/b.yaml"])
    with pytest.raises(UserError, match="qa is a built-in task"):
        parse([*start, "--tasks", f"{tmp_path}/c.yaml"])
    with pytest.raises(UserError, match=r"no such file; did you mean .*a\.yaml\?"):
        parse([*start, "--tasks", f"{tmp_path}/aa.yaml"])
    with pytest.raises(UserError, match="task capitals needs data"):
        parse(["--model", "m", "--tasks", f"{tmp_path}/a.yaml"])


def test_the_page_shows_tasks_that_work_and_names_every_key(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "own-task.md").read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert [made(tmp_path, text).name for text in examples] == ["capitals", "science"]
    keys = {key for keys in KINDS.values() for key in keys} | set(COMMON)
    assert not [key for key in keys if f"`{key}`" not in page]
    assert not [name for names in METRICS.values() for name in names if f"`{name}`" not in page]
