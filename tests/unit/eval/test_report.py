"""The report in Markdown and HTML, from made-up evaluations: what is said, and that answers stay text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.cells import cell_len
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eval.compare import compare, with_holm_correction
from eval.metrics.labels import macro_f1
from eval.protocols import CorpusMetric, Sample, SampleMetric, Table
from eval.report import figure, markdown, show, summary, words, write
from eval.report.curves import write_curves
from eval.report.figure import draw
from eval.report.html import page
from eval.report.matrix import legend, matrix
from eval.report.notes import circumstances, warnings
from eval.report.sheets import LONGEST, groups, of_task
from eval.report.terminal import column_groups, column_widths, folded
from eval.result import Evaluation, MetricResult, Result, Subsample
from tests.support.eval_results import ACCURACY, CHINESE, HOSTILE, evaluation
from zerotune.data.formats import describe_left_out
from zerotune.models.run_facts import read_run_facts


@pytest.fixture(scope="module")
def compared() -> Evaluation:
    return evaluation()


@pytest.fixture(scope="module")
def html(compared: Evaluation) -> str:
    return page(compared)


class Reader(HTMLParser):
    """What a browser would do with a page: run, fetch, show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.data: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside: tuple[str, dict[str, str | None]] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = (tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        tag, attributes = self._inside or ("", {})
        if tag == "script":
            (self.data if attributes.get("type") == "application/json" else self.scripts).append(data)
        elif tag != "style":
            self.texts.append(data)


def test_an_answer_cannot_run_in_the_page(html: str) -> None:
    read = Reader(html)
    assert len(read.scripts) == 1  # ours
    assert "taken" not in read.scripts[0]
    assert not [(tag, name) for tag, attributes in read.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in read.texts  # in a table, whole and as text
    rows = [row for data in read.data for row in json.loads(data)["rows"]]
    assert HOSTILE in [text for row in rows for _, texts in row["shown"] for text in texts]


def test_the_policy_allows_this_script_and_nothing_else(html: str) -> None:
    policy = next(a["content"] for t, a in Reader(html).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    script = Reader(html).scripts[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}';" in policy


def test_the_page_asks_for_nothing_outside(html: str) -> None:
    for tag, attributes in Reader(html).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "action", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_holds_the_answer_first_and_all_rows_of_the_tables(html: str, compared: Evaluation) -> None:
    text = " ".join(Reader(html).texts)
    assert text.index("44 rows won") < text.index("Against the baseline") < text.index("By subject")
    assert all(f"subject_{k:02}" in text for k in range(30))
    assert CHINESE in text
    assert "train.jsonl:171" in text  # the last of the rows found in the training data
    assert text.index("How this was measured") > text.index("Samples")


def test_the_page_opens_with_one_table_of_models_and_metrics(html: str, compared: Evaluation) -> None:
    found = matrix(compared.result)
    assert [(line.task, line.metric) for line in found] == [
        ("quiz", "accuracy"), ("", "similarity"), ("texts", "perplexity"), ("", "bits per byte"),
    ]  # fmt: skip
    assert [[cell.arrow for cell in line.cells] for line in found] == [["", "▲"], ["", "▼"], ["", "▲"], ["", "▲"]]
    assert [line.direction for line in found] == ["", "", "lower is better", "lower is better"]
    assert found[2].cells[1].change.startswith("x0.")
    text = " ".join(Reader(html).texts)
    assert text.index("▲") < text.index("Note:") < text.index("In words") < text.index("44 rows won")
    tags = [tag for tag, _ in Reader(html).tags]
    assert tags.index("table") < tags.index("details")
    assert legend(evaluation(("alone",), rows=9).result) == ""


def test_a_note_that_holds_for_several_tasks_stands_once(compared: Evaluation) -> None:
    first = compared.result.tasks[1]
    tasks = [first, dataclasses.replace(first, name="more")]
    told = warnings(dataclasses.replace(compared.result, tasks=tasks))
    assert told == ["texts; more: 1 row left out of these numbers"]


def test_an_interval_of_ratios_is_text_in_markdown_too(compared: Evaluation) -> None:
    assert re.search(r"x0\.\d+ \[x0\.\d+, x0\.\d+\], p [<=] 0\.001", summary(compared.result))


def test_the_page_says_how_many_samples_it_leaves_out(monkeypatch: pytest.MonkeyPatch, compared: Evaluation) -> None:
    monkeypatch.setattr("eval.report.html.MOST_SAMPLES", 70)
    data = json.loads(Reader(page(compared)).data[0])
    assert (len(data["rows"]), data["total"]) == (70, 120)
    changed = sum(any(row["won"]) for row in data["rows"])
    assert changed == sum(outcome != 0 for outcome in compared.outcomes["quiz"]["merged"])  # these come first


def test_markdown_shows_the_best_and_the_worst_of_long_tables(compared: Evaluation) -> None:
    report = markdown(compared)
    (sheet,) = groups(compared.result.tasks[0])
    assert len(sheet.rows) > LONGEST
    shown = re.findall(r"^\| (subject_\d\d) ", report, re.MULTILINE)
    names = [row[0].text for row in sheet.rows]
    assert shown == names[:10] + names[-10:]
    assert "... 10 more in report.html" in report
    best = [row[3].value for row in sheet.rows]
    assert best == sorted(best, reverse=True)


def test_markdown_keeps_answers_as_text(compared: Evaluation) -> None:
    report = markdown(compared)
    assert "<script" not in report.replace("\\<script", "")
    table = next(line for line in report.splitlines() if "taken" in line and line.startswith("|"))
    assert len(re.findall(r"(?<!\\)\|", table)) == 4
    assert "merged\\_model" not in summary(evaluation(("base", "merged_model")).result)


def test_the_terminal_shows_the_answer_first_in_80_columns(compared: Evaluation) -> None:
    written = io.StringIO()
    show(compared.result, Console(file=written, width=80))
    said = written.getvalue()
    assert max(map(cell_len, said.splitlines())) <= 80
    assert said.index("44 rows won") < said.index("Metrics")
    assert re.search(r"21\.7 % \[\d", " ".join(said.split()))  # an interval is no markup
    assert "**" not in said
    assert "…" not in said  # long names go on in the next line


LONG_NAME = "runs/qwen2.5-7b-instruct-financial-phrasebank-lora-r64-alpha128-seed42/merged"


def shown(result: Result, width: int = 80) -> str:
    written = io.StringIO()
    show(result, Console(file=written, width=width))
    return written.getvalue()


def test_the_terminal_breaks_names_between_their_parts_and_keeps_words_and_numbers() -> None:
    said = shown(evaluation((LONG_NAME, "Qwen2.5-7B-Instruct")).result)
    assert max(map(cell_len, said.splitlines())) <= 80
    pieces = said[said.index("Metrics") :].split()
    assert {"runs/qwen2.5-7b-instruct-", "r64-alpha128-seed42/merged", "detectable", "similarity"} <= set(pieces)
    assert column_widths([["token_classification"], ["-0.0227 [-0.1, 3]"]], 24) == [14, 10]
    assert folded("token_classification of 1e-05", 14) == "token_\nclassification\nof 1e-05"
    assert folded("abcdefghi jk l", 7) == "abcdefg\nhi jk l"
    assert folded("央行周二表示，将继续", 8) == "央行周二\n表示，将\n继续"


def test_columns_that_do_not_fit_go_on_in_a_table_below_with_the_names_of_the_rows() -> None:
    columns = [["task", "qa"], ["metric", "match"], *([name, "0.512 [0.42, 0.61]"] for name in "abc")]
    assert column_groups(columns, names=2, room=80) == [[0, 1, 2, 3, 4]]
    assert column_groups(columns, names=2, room=30) == [[0, 1, 2, 3], [0, 1, 4]]
    assert column_groups(columns, names=2, room=5) == [[0, 1, 2], [0, 1, 3], [0, 1, 4]]
    said = shown(evaluation(("SmolLM2-135M-Instruct", "lora-merged", "full-merged")).result, 60)
    metrics = said[said.index("Metrics") : said.index("Against the baseline")]
    assert {"SmolLM2-135M-", "Instruct", "lora-", "full-", "merged"} <= set(metrics.split())  # no piece is broken


@pytest.mark.parametrize("width", [30, 57, 80, 200])
def test_the_terminal_is_never_wider_than_its_window(width: int) -> None:
    said = shown(evaluation((LONG_NAME, "Qwen2.5-7B-Instruct", CHINESE)).result, width)
    assert max(map(cell_len, said.splitlines())) <= width


def test_the_terminal_shows_the_tables_of_tasks_without_metrics(compared: Evaluation) -> None:
    table = Table("Continuations", ("prompt", "greedy"), [(CHINESE, HOSTILE), ("Once upon a time", "word " * 100)])
    task = dataclasses.replace(compared.result.tasks[0], name="samples", metrics=[], contamination=None)
    task = dataclasses.replace(task, tables={model: [table] for model in ("base", "merged")})
    said = shown(dataclasses.replace(compared.result, tasks=[task]))
    assert said.index("prompt") < said.index("model") < said.index("base") < said.index("merged")
    assert max(map(cell_len, said.splitlines())) <= 80
    assert len(said.splitlines()) < 50  # long texts are cut here
    assert "..." in said


def test_markdown_shows_each_rows_numbers_and_the_turns_of_a_dialogue(compared: Evaluation) -> None:
    turns = [{"asked": "Hi?", "answer": "Ho."}, {"asked": "And?", "answer": ""}]
    samples = {
        name: [dataclasses.replace(sample, shown={"turns": turns}) for sample in own]
        for name, own in compared.samples["quiz"].items()
    }
    report = markdown(dataclasses.replace(compared, samples={**compared.samples, "quiz": samples}))
    assert "- turns:\n  1. asked: Hi?<br>answer: Ho.\n  2. asked: And?<br>answer: \n" in report
    first = compared.samples["quiz"]["merged"][0].values["similarity"]
    assert f"- similarity (merged): {100 * first:.1f} %\n" in report
    right = compared.samples["quiz"]["merged"][0].values["accuracy"]
    assert f"- accuracy (merged): {right:.0f}\n" in report


@pytest.mark.parametrize("without", ["base", "merged"])
def test_a_metric_that_one_model_lacks(compared: Evaluation, without: str) -> None:
    samples = dict(compared.samples["quiz"])
    samples[without] = [
        dataclasses.replace(one, values={"accuracy": one.values["accuracy"]}) for one in samples[without]
    ]
    report = markdown(dataclasses.replace(compared, samples={**compared.samples, "quiz": samples}))
    assert ("- similarity (merged)" in report, "- similarity (base)" in report) == (
        without == "base",
        without != "base",
    )


def test_a_slow_task_has_a_speed(compared: Evaluation) -> None:
    task = dataclasses.replace(compared.result.tasks[0], seconds={"base": 9000.0}, tokens={"base": 90_000})
    lines = circumstances(dataclasses.replace(compared.result, tasks=[task]))
    assert any(line.endswith("; base 9000.0 s (0.01333 rows/s, 10 tokens/s)") for line in lines)


def test_one_model_is_no_baseline() -> None:
    for names, colours in ((("merged",), [figure.OTHER]), (("base", "merged"), [figure.BASELINE, figure.OTHER])):
        picture = draw(evaluation(names).result, "svg")
        assert picture is not None
        drawn = picture.decode()
        assert [colour for colour in (figure.BASELINE, figure.OTHER) if f"stroke: {colour}" in drawn] == colours


def test_a_task_that_brings_its_rows_names_no_file(compared: Evaluation) -> None:
    task = dataclasses.replace(compared.result.tasks[0], data={})
    lines = circumstances(dataclasses.replace(compared.result, tasks=[task]))
    assert any(line.startswith("quiz version 1: built-in rows; base 12.5 s") for line in lines)
    assert any("cpu, 1 process; " in line for line in lines)


def test_a_picture_of_equal_numbers_has_a_plain_axis(compared: Evaluation) -> None:
    metric = results([(0.0, 0.0)] * 12, SampleMetric("similarity", higher_is_better=True))
    task = dataclasses.replace(compared.result.tasks[0], metrics=[*compared.result.tasks[0].metrics, metric])
    picture = draw(dataclasses.replace(compared.result, tasks=[task]), "svg")
    assert picture is not None
    labels = re.findall("<!-- (.*?) -->", picture.decode())
    assert "0.0" in " ".join(labels)
    assert not [label for label in labels if label.startswith("1e")]


def test_turns_are_read_line_by_line(compared: Evaluation) -> None:
    turns = [{"asked": "Hi?", "answer": HOSTILE, "similarity": 1 / 3}, {"asked": "And?", "answer": ""}]
    assert words.readable(turns) == f"1. asked: Hi?\nanswer: {HOSTILE}\nsimilarity: 0.3333\n\n2. asked: And?\nanswer: "
    assert [words.readable(value) for value in ("a", None, 0.25, True, [1, "二"], {"A": 1})] == [
        "a", "", "0.25", "true", '[1, "二"]', '{"A": 1}',
    ]  # fmt: skip


def test_columns_of_texts_are_equally_wide(compared: Evaluation) -> None:
    table = Table("Continuations", ("prompt", "greedy"), [(CHINESE, HOSTILE)])
    task = dataclasses.replace(compared.result.tasks[0], tables={"base": [table]})
    read = Reader(page(dataclasses.replace(compared, result=dataclasses.replace(compared.result, tasks=[task]))))
    classes = [attributes.get("class") for tag, attributes in read.tags if tag == "table"]
    assert classes.count("texts-only") == 1


def test_words_of_two_corpora_are_drawn(compared: Evaluation, tmp_path: Path) -> None:
    table = Table("Words of b against a", ("word", "share in a", "share in b", "bits"), [("利率", 0.4, 0.0, 0.2)], True)
    task = dataclasses.replace(compared.result.tasks[0], tables={"base": [table]})
    write(dataclasses.replace(compared, result=dataclasses.replace(compared.result, tasks=[task])), tmp_path)
    with Image.open(tmp_path / "words-1.png") as picture:
        assert picture.width > 500
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10
    assert "![The same as bars](words-1.png)" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert 'alt="The same as bars, the first rows" src="data:image/svg' in (tmp_path / "report.html").read_text("utf-8")


def test_what_the_data_say_is_shown_once(compared: Evaluation) -> None:
    shift = Table("Words of b against a", ("word", "share in a"), [("rate", 0.4)], of_data=True)
    own = {model: [Table("Again", ("turn",), [(1,)]), shift] for model in ("base", "merged")}
    task = dataclasses.replace(compared.result.tasks[0], tables=own)
    assert [sheet.title for sheet in of_task(task)] == [shift.title, "Again"]


def test_models_stand_side_by_side_in_a_tasks_tables(compared: Evaluation) -> None:
    head = ("type", "there are", "F1")
    rows = {"base": [("DNA", 7, 0.5)], "merged": [("DNA", 7, 0.75), ("RNA", 0, 0.0)]}
    own = {model: [Table("Entities", head, found, shared=2)] for model, found in rows.items()}
    (sheet,) = of_task(dataclasses.replace(compared.result.tasks[0], tables=own))
    assert sheet.head == ["type", "there are", "F1, base", "F1, merged"]
    assert [[cell.text for cell in row] for row in sheet.rows] == [["DNA", "7", "0.5", "0.75"], ["RNA", "0", "", "0"]]
    own = {model: [Table("Continuations", ("prompt", "greedy"), [("a", model), ("b", "")])] for model in rows}
    (sheet,) = of_task(dataclasses.replace(compared.result.tasks[0], tables=own))
    assert sheet.head == ["prompt", "model", "greedy"]
    texts = [[cell.text for cell in row] for row in sheet.rows]
    assert texts == [["a", "base", "base"], ["a", "merged", "merged"], ["b", "base", ""], ["b", "merged", ""]]


def test_contamination_is_told_beside_the_number(compared: Evaluation) -> None:
    report = markdown(compared)
    assert "quiz: 20 of 120 rows occur in the training data. accuracy 21.7 %, on the 100 clean rows 22.0 %" in report
    assert "the same row: 10" in report
    assert "could not be compared: lost.jsonl" in report
    assert "and 10 more in result.json" in report


def test_the_evaluator_is_named_by_version_and_commit(compared: Evaluation) -> None:
    result = dataclasses.replace(compared.result, versions={"zerotune": "1.2.3", "python": "3.11"})
    code = {"commit": "ab" * 20, "dirty": True}
    lines = ["\n".join(circumstances(dataclasses.replace(result, code=state))) for state in (None, code)]
    assert "; zerotune 1.2.3, python 3.11" in lines[0]
    assert "; zerotune 1.2.3 (commit abababababab, with changes), python 3.11" in lines[1]


@pytest.mark.parametrize(
    ("fewer", "seed", "said"),
    [
        (Subsample(50, 1319, 1, 1), None, "the first ones"),
        (Subsample(50, 1319, 1, 1), 42, "drawn with seed 42"),
        (Subsample(6, 1000, 2, 2), None, "the first ones of each of 2 files in turn"),
        (Subsample(50, 11582, 50, 67), None, "the first ones of 50 files; none of the other 17"),
    ],
)
def test_fewer_rows_than_there_are_is_a_note(
    compared: Evaluation, fewer: Subsample, seed: int | None, said: str
) -> None:
    result = compared.result
    tasks = [dataclasses.replace(result.tasks[0], fewer=fewer), *result.tasks[1:]]
    told = warnings(dataclasses.replace(result, tasks=tasks, settings={**result.settings, "sample_seed": seed}))
    assert told[0] == f"quiz: {fewer.rows} of {fewer.of_rows:,} rows used (--max_rows), {said}"
    assert "asked" not in warnings(result)[0]


def test_parts_of_rows_that_are_not_used_are_a_note(compared: Evaluation) -> None:
    left_out = describe_left_out(Counter({"column text": 2, "column split": 3}), {"split": "test"})
    tasks = [dataclasses.replace(compared.result.tasks[0], left_out=left_out)]
    line = "quiz: parts of rows that are not used (in how many rows): column text (2)"
    assert line in warnings(dataclasses.replace(compared.result, tasks=tasks))


def test_a_passage_in_the_training_data_is_not_told_as_the_row(compared: Evaluation) -> None:
    (task, *_) = compared.result.tasks
    assert task.contamination is not None
    passages = [dataclasses.replace(overlap, how="passage") for overlap in task.contamination.found]
    found = dataclasses.replace(task.contamination, found=passages)
    result = dataclasses.replace(compared.result, tasks=[dataclasses.replace(task, contamination=found)])
    assert warnings(result)[0].startswith("quiz: 20 of 120 rows share a passage with the training data. ")


def results(pairs: list[tuple[float, float]], metric: SampleMetric = ACCURACY) -> MetricResult:
    """Of rows with these values for two models."""
    samples = {
        model: [Sample(str(k), {metric.name: pair[place]}) for k, pair in enumerate(pairs)]
        for place, model in enumerate(("base", "merged"))
    }
    return compare([metric], samples)[0]


def sentence(compared: Evaluation, metric: MetricResult, rows: int) -> str:
    task = dataclasses.replace(compared.result.tasks[0], metrics=[metric], samples=rows)
    (found,) = words.sentences(dataclasses.replace(compared.result, tasks=with_holm_correction([task])))
    return found.before + found.verdict + found.after


def test_no_difference_is_said_in_plain_words_with_what_would_have_been_seen(compared: Evaluation) -> None:
    pairs = [(1.0, 0.0), (0.0, 1.0)] * 10 + [(1.0, 1.0)] * 80
    said = sentence(compared, results(pairs), 100)
    assert said == (
        "quiz, accuracy: 90.0 % -> 90.0 %, no significant difference (0.0 [-9.1, +9.1] points, p = 1); "
        "with 100 rows a difference below 12.6 points would not be detected"
    )


def test_a_difference_is_said_with_its_test_and_rows(compared: Evaluation) -> None:
    said = sentence(compared, results([(0.0, 1.0)] * 15 + [(1.0, 0.0)] * 3 + [(1.0, 1.0)] * 22), 40)
    assert said.startswith("quiz, accuracy: 62.5 % -> 92.5 %, better: +30.0 [")
    assert said.endswith("] points, p = 0.0044; 15 rows won, 3 lost, 22 tied")


def test_models_that_answer_alike_have_no_test_power(compared: Evaluation) -> None:
    metric = SampleMetric("similarity", higher_is_better=True)
    assert sentence(compared, results([(0.4, 0.4)] * 12, metric), 12).endswith(
        "no significant difference: the same on 12 rows"
    )


def test_equal_rows_say_nothing_of_how_rows_vary(compared: Evaluation) -> None:
    metric = results([(0.0, 0.0)] * 12, SampleMetric("similarity", higher_is_better=True))
    assert [(one.value, one.low, one.method) for one in metric.estimates] == [(0.0, None, None)] * 2
    assert (metric.differences[0].low, metric.differences[0].p_value) == (None, 1.0)
    assert sentence(compared, metric, 12).endswith("0.0 % -> 0.0 %, no significant difference: the same on 12 rows")


def test_another_number_is_not_the_same_though_no_row_is_won(compared: Evaluation) -> None:
    """Both models are wrong on the same rows, but not with the same label."""
    metric = CorpusMetric("macro_f1", higher_is_better=True, of=macro_f1)
    gold = [0.0] * 24 + [1.0] * 12
    said = {"base": [0.0] * 36, "merged": [0.0] * 24 + [2.0] * 12}
    samples = {
        model: [Sample(str(k), {"gold": a, "predicted": b}) for k, (a, b) in enumerate(zip(gold, own, strict=True))]
        for model, own in said.items()
    }
    (found,) = compare([metric], samples)
    assert (found.differences[0].won, found.differences[0].lost) == (0, 0)
    assert "macro f1: 40.0 % -> 33.3 %, better" not in (said_of := sentence(compared, found, 36))
    assert "macro f1: 40.0 % -> 33.3 %, " in said_of


def test_few_rows_are_not_tested_and_the_report_says_why(compared: Evaluation) -> None:
    metric = results([(0.1, 0.9)] * 3 + [(0.2, 0.8)] * 2, SampleMetric("similarity", higher_is_better=True))
    assert sentence(compared, metric, 5).endswith(", not tested: too few rows for an interval: 5 of at least 20")


def test_many_comparisons_are_corrected_for_their_number(compared: Evaluation) -> None:
    weak = results([(0.0, 1.0)] * 9 + [(1.0, 0.0)] * 1 + [(1.0, 1.0)] * 30)
    assert weak.differences[0].verdict == "better"
    assert 0.01 < weak.differences[0].p_value < 0.05
    nothing = results([(1.0, 0.0), (0.0, 1.0)] * 20)
    task = dataclasses.replace(compared.result.tasks[0], metrics=[weak, *[nothing] * 4])
    result = dataclasses.replace(compared.result, tasks=with_holm_correction([task]))
    assert result.tasks[0].metrics[0].differences[0].p_holm > 0.05
    assert words.multiplicity(result).endswith("none of the differences remains.")


def test_one_model_gets_its_numbers_as_the_answer() -> None:
    alone = evaluation(("base",))
    assert markdown(alone).splitlines()[2] == "- quiz, accuracy: **21.7 % [15.2, 29.9]** over 120 rows"
    assert "Against the baseline" not in page(alone)


def test_three_models_are_named_in_each_sentence() -> None:
    three = evaluation(("base", "one", "two"))
    lines = markdown(three).splitlines()
    assert lines[0] == "# Evaluation: one, two against base"
    assert "(one), **better**" in lines[2]
    assert "(two), **better**" in lines[3]


def test_the_picture_grows_with_the_metrics_and_stays_on_a_page() -> None:
    def size(models: tuple[str, ...]) -> tuple[int, int]:
        return Image.open(io.BytesIO(draw(evaluation(models).result) or b"")).size

    few = size(("base", "merged"))
    long = size(("base", *(f"{'long/name' * 9}-{k}" for k in range(5))))
    assert few[0] == long[0] == 1500
    assert few[1] < long[1]


def test_a_name_that_no_font_has_is_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure, "fonts", lambda: ["DejaVu Sans"])
    svg = (draw(evaluation(("基础", "costs $5 or $6")).result, "svg") or b"").decode()
    assert "<!-- model 1 -->" in svg
    assert "<!-- costs $5 or $6 -->" in svg


def test_curves_stand_at_the_step_of_the_checkpoint(compared: Evaluation, tmp_path: Path) -> None:
    models = []
    for model, step in zip(compared.result.models, (120, None), strict=True):
        folder = tmp_path / model.name
        folder.mkdir()
        facts = {"merge": {"step": step}, "config": {"run": {"folder": "runs/demo"}}} if step else {}
        (folder / "run.json").write_text(json.dumps(facts))
        models.append(dataclasses.replace(model, origin=read_run_facts(folder)))
    write_curves(dataclasses.replace(compared.result, models=models), tmp_path / "curves")
    for run, step, place in (("demo", 120, 0), ("merged", 0, 1)):
        events = EventAccumulator(str(tmp_path / "curves" / run)).Reload()
        (point,) = events.Scalars("quiz/accuracy")
        assert point.step == step
        assert point.value == pytest.approx(compared.result.tasks[0].metrics[0].estimates[place].value)


def test_every_model_has_a_file_of_its_own(tmp_path: Path) -> None:
    write(evaluation(("模型/merged", "别的/merged", "a/b", "a-b"), rows=20), tmp_path)
    names = sorted(path.name for path in (tmp_path / "samples").glob("quiz.*"))
    assert names == ["quiz.a-b-4.jsonl", "quiz.a-b.jsonl", "quiz.别的-merged.jsonl", "quiz.模型-merged.jsonl"]


def test_cards_have_the_scales_of_the_report_and_no_parts_of_sums() -> None:
    """A share in percent as in the tables, and not the 28 counts that BLEU and chrF sum."""
    rows = [Sample("rows.jsonl:1", {"similarity": 0.25, "tokens": 12.0, "bleu_0": 3.0, "chrf_11": 4.0}, {})]
    made = evaluation(("base",))
    shown = page(dataclasses.replace(made, samples={**made.samples, "quiz": {"base": rows}}, outcomes={}))
    data = re.search(r'<script type="application/json" class="data">(.*?)</script>', shown)
    assert data is not None
    (row,) = json.loads(data[1])["rows"]
    assert row["formatted"] == {"similarity": ["25.0 %"], "tokens": ["12"]}
    assert row["values"] == {"similarity": [0.25], "tokens": [12.0]}
