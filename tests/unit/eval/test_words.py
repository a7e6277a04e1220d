"""Scores of words against the libraries called directly, and the text tasks against answers written by hand."""

from __future__ import annotations

import math
from typing import Any

import jieba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_chinese import Rouge
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from scipy.spatial.distance import jensenshannon

from eval.compare import compare
from eval.config import parse
from eval.metrics.bleu import bleu, bleu_counts, chrf, chrf_counts
from eval.metrics.consistency import consistency
from eval.metrics.rouge import rouge
from eval.metrics.similarity import similarity
from eval.metrics.writing_system import Writing, writing
from eval.task_rows import read_items
from eval.tasks import TASKS, dialogue
from tests.unit.data.test_rows import prompter
from zerotune.data.raw_row import Row
from zerotune.inference.requests import Generate, Generated, Request, Scored

ENGLISH = [
    ("the cat sat on the mat", "the cat is on the mat"),
    ("A completely different answer.", "Paris, of course!"),
    ("It's 3.5 km away", "It is 3.5 km away from here, they say."),
    ("", "nothing was said"),
]
CHINESE = [
    ("北京是中国的首都", "中国的首都是北京"),
    ("今天天气很好", "今天的天气非常好，适合散步。"),
    ("不知道", "巴黎"),
]


def columns(rows: list[dict[str, float]]) -> Any:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize(("answer", "reference"), ENGLISH)
def test_rouge_of_english_is_rouge_score(answer: str, reference: str) -> None:
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False).score(reference, answer)
    assert rouge(answer, reference) == pytest.approx({name: score.fmeasure for name, score in expected.items()})


@pytest.mark.parametrize(("answer", "reference"), CHINESE)
def test_rouge_of_chinese_is_rouge_chinese_over_jieba(answer: str, reference: str) -> None:
    (expected,) = Rouge().get_scores(" ".join(jieba.lcut(answer)), " ".join(jieba.lcut(reference)))
    found = rouge(answer, reference)
    assert found == pytest.approx({f"rouge{n}": expected[f"rouge-{n.lower()}"]["f"] for n in ("1", "2", "L")}, abs=1e-7)
    assert rouge("", reference) == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_rouge_by_hand() -> None:
    """Five of six words are common, three of five pairs, and the longest common subsequence is five words long."""
    assert rouge(*ENGLISH[0]) == pytest.approx({"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6})


@pytest.mark.parametrize(("pairs", "tokenizer"), [(ENGLISH, "13a"), (CHINESE, "zh")])
def test_bleu_and_chrf_of_a_corpus_are_sacrebleu(pairs: list[tuple[str, str]], tokenizer: str) -> None:
    answers, references = [pair[0] for pair in pairs], [[pair[1] for pair in pairs]]
    table = columns([{**bleu_counts(*pair), **chrf_counts(*pair)} for pair in pairs])
    assert bleu(table) == pytest.approx(BLEU(tokenize=tokenizer).corpus_score(answers, references).score)
    assert chrf(table) == pytest.approx(CHRF().corpus_score(answers, references).score)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab .", max_size=30), st.text("ab .", min_size=1, max_size=30)), min_size=1, max_size=5)
)
def test_any_english_corpus_is_sacrebleu(pairs: list[tuple[str, str]]) -> None:
    answers, references = [pair[0] for pair in pairs], [[pair[1] for pair in pairs]]
    table = columns([{**bleu_counts(*pair), **chrf_counts(*pair)} for pair in pairs])
    assert bleu(table) == pytest.approx(BLEU().corpus_score(answers, references).score)
    assert chrf(table) == pytest.approx(CHRF().corpus_score(answers, references).score)


def item(task: str, **row: Any) -> Any:
    return TASKS[task].load(Row("rows.jsonl", 1, row))


def test_corpus_scores_are_compared_over_the_corpus() -> None:
    task = TASKS["bleu"]
    items = [item("bleu", question="?", answer=reference) for _, reference in ENGLISH]
    good = [task.score(one, [Generated(reference)]) for one, (_, reference) in zip(items, ENGLISH, strict=True)]
    other = [task.score(one, [Generated(answer)]) for one, (answer, _) in zip(items, ENGLISH, strict=True)]
    first = next(metric for metric in compare(task.metrics, {"good": good, "other": other}) if metric.name == "bleu")
    assert first.estimates[0].value == pytest.approx(100.0)
    assert first.differences[0].lost == 3  # a reference of three words has no BLEU of its own


def test_partial_match_by_similarity() -> None:
    assert similarity("The Eiffel Tower.", "the eiffel tower") == 1.0
    assert similarity("abcd", "bcde") == pytest.approx(0.75)
    one = item("qa", question="?", answer="the Eiffel Tower in Paris", subset="factual")
    sample = TASKS["qa"].score(one, [Generated("Eiffel Tower, Paris")])
    assert sample.values["exact_match"] == 0.0
    assert sample.values["partial_match"] == 1.0
    assert sample.groups == {"subset": "factual"}


def test_tasks_over_the_same_rows_ask_the_same() -> None:
    row = {"question": "Capital of France?", "answer": "Paris"}
    asked = {name: TASKS[name].ask(item(name, **row), prompter()) for name in ("qa", "rouge", "bleu")}
    assert asked["qa"] == asked["rouge"] == asked["bleu"]


DIALOGUE = [
    {"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "An apple."},
    {"role": "user", "content": "Another."}, {"role": "assistant", "content": "A pear."},
    {"role": "user", "content": "A third."}, {"role": "assistant", "content": "A plum."},
]  # fmt: skip


def test_a_dialogue_goes_on_from_what_the_model_said() -> None:
    task, one = TASKS["dialogue"], item("dialogue", messages=DIALOGUE)
    assert task.follow is not None
    words = prompter()
    answers = [Generated(text) for text in ("A kiwi.", "a kiwi", "A plum.")]
    rounds: list[Request] = [*task.ask(one, words)]
    for k in (1, 2):
        rounds += task.follow(one, answers[:k], words)
    assert not task.follow(one, answers, words)
    asked = [words.tokenizer.decode(r.prefix_ids) for r in rounds if isinstance(r, Generate)]
    assert "A kiwi." in asked[1]
    assert "An apple." not in asked[1]
    assert asked[2].index("A kiwi.") < asked[2].index("a kiwi") < asked[2].index("A third.")
    values = task.score(one, answers).values
    assert values["unrepeated"] == pytest.approx(2 / 3)
    assert values["turn_match"] == pytest.approx(1 / 3)
    cut_off = task.score(one, answers[:1]).values
    assert cut_off["turn_match"] == 0.0
    assert cut_off["unrepeated"] == pytest.approx(1 / 3)
    assert cut_off["consistency"] == 0.0  # no two answers are there
    assert task.tables is not None
    (table,) = task.tables([task.score(one, answers), task.score(one, answers[:1])])
    assert [row[0] for row in table.rows] == [1, 2, 3]
    assert [row[1] for row in table.rows] == [2, 2, 2]
    assert table.rows[2][3] == 0.5  # said once, and once there was no room
    assert [row[4] for row in table.rows] == [0, 1, 1]


def test_a_turn_may_repeat_what_the_reference_repeats() -> None:
    yes = [{**message, "content": "Yes."} if message["role"] == "assistant" else message for message in DIALOGUE]
    one = item("dialogue", messages=yes)
    values = TASKS["dialogue"].score(one, [Generated("Yes.")] * 3).values
    assert (values["unrepeated"], values["consistency"]) == (1.0, 1.0)


FRUITS = ["apples are fruits", "apples are red fruits", "cherries are red"]


def words_in_common(one: str, other: str) -> float:
    first, second = set(one.split()), set(other.split())
    return 2 * len(first & second) / max(len(first) + len(second), 1)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (FRUITS, 1.0),
        (["pears are fruits", "pears are green fruits", "grapes are green"], 1.0),  # other answers, as coherent
        ([FRUITS[0]] * 3, 1 - (1 / 7 + 4 / 6 + 3 / 7) / 3),  # one answer again and again
        (["one", "two", "three"], 1 - (6 / 7 + 2 / 6 + 4 / 7) / 3),  # nothing to do with each other
        ([FRUITS[0], FRUITS[1], ""], 1 / 3),  # two of three pairs have an empty answer
        (["", " ", "\n"], 0.0),
    ],
)
def test_consistency_is_how_answers_hang_together_as_the_references_do(answers: list[str], expected: float) -> None:
    assert consistency(answers, FRUITS, words_in_common) == pytest.approx(expected)


def test_cosines_cannot_make_consistency_negative() -> None:
    assert consistency(["a", "b"], ["c", "d"], lambda one, other: 1.0 if {one, other} == {"a", "b"} else -1.0) == 0.0


def test_a_dialogue_has_its_answers_back() -> None:
    sample = TASKS["dialogue"].score(item("dialogue", messages=DIALOGUE), [Generated("A kiwi."), Generated("")])
    assert dialogue.texts_of(sample) == (["A kiwi.", "", ""], ["An apple.", "A pear.", "A plum."])
    assert [turn["answer"] for turn in sample.shown["turns"]][1:] == ["", dialogue.NO_ROOM]
    assert sample.shown["turns"][0]["similarity"] == similarity("A kiwi.", "An apple.")  # rounded, it may pass 0.7


def test_one_chinese_name_makes_no_chinese_text() -> None:
    assert writing("The capital is called 北京 in Chinese") is Writing.SPACED
    assert writing("我用 Python 写代码") is Writing.CHINESE


def test_a_dialogue_has_two_turns() -> None:
    from zerotune.data.fields import RowError

    with pytest.raises(RowError, match="at least two text responses"):
        item("dialogue", messages=DIALOGUE[:2])


def perplexity_sample(file: str, text: str, nll: float, tokens: int) -> Any:
    task = TASKS["perplexity"]
    return task.score(task.load(Row(file, 1, {"text": text})), [Scored(-nll, tokens, len(text.encode()))])


def test_perplexity_by_token_word_and_sentence() -> None:
    samples = [perplexity_sample("a.jsonl", "one two three", 6.0, 4), perplexity_sample("a.jsonl", "北京很大", 2.0, 2)]
    (found,) = [compare(TASKS["perplexity"].metrics, {"m": samples})]
    values = {metric.name: metric.estimates[0].value for metric in found}
    assert values["perplexity"] == pytest.approx(math.exp(8 / 6))
    assert values["sentence_perplexity"] == pytest.approx((math.exp(1.5) + math.e) / 2)
    cut = len(jieba.lcut("北京很大"))
    assert values["perplexity_per_word"] == pytest.approx(math.exp(8 / (3 + cut)))
    assert not found[0].groups


def test_two_corpora_are_shown_apart_with_the_words_that_tell_them_apart() -> None:
    finance = [perplexity_sample("in/test.jsonl", "The bank raised the rate.", 5.0, 5)] * 2
    climate = [perplexity_sample("out/test.jsonl", "the sea level rose", 9.0, 4)]
    task = TASKS["perplexity"]
    metric = compare(task.metrics, {"m": [*finance, *climate]})[0]
    assert {(g.name, round(g.estimates[0].value, 3)) for g in metric.groups} == {
        ("in/test.jsonl", round(math.e, 3)), ("out/test.jsonl", round(math.exp(9 / 4), 3)),
    }  # fmt: skip
    assert task.tables is not None
    (table,) = task.tables([*finance, *climate])
    assert table.head[0] == "word"
    assert table.of_data
    assert {row[0] for row in table.rows} == {"the", "bank", "raised", "rate", "sea", "level", "rose"}
    assert sum(float(row[3]) for row in table.rows) == pytest.approx(js_divergence(), abs=1e-9)
    assert not task.tables(finance)


def js_divergence() -> float:
    """By scipy, from the shares written out: the, bank, raised, rate / sea, level, rose."""
    return float(jensenshannon([0.4, 0.2, 0.2, 0.2, 0, 0, 0], [0.25, 0, 0, 0, 0.25, 0.25, 0.25], base=2) ** 2)


def test_prompts_are_continued_greedily_and_by_temperature() -> None:
    task = TASKS["samples"]
    (request, warm, hot) = task.ask(item("samples", text="The meaning of life is"), prompter())
    assert [r.temperature for r in (request, warm, hot) if isinstance(r, Generate)] == [0.0, 0.7, 1.0]
    sample = task.score(item("samples", text="x"), [Generated("a"), Generated("b"), Generated("c")])
    assert sample.shown == {"prompt": "x", "greedy": "a", "temperature 0.7": "b", "temperature 1": "c"}
    (table,) = task.tables([sample])
    assert table.head == ("prompt", "greedy", "temperature 0.7", "temperature 1")
    assert table.rows == [("x", "a", "b", "c")]


def test_prompts_are_continued_at_the_temperatures_asked_for() -> None:
    config = parse(["--model", "m", "--tasks", "samples", "--temperatures", "1.2", "0"])
    (task,) = config.chosen_tasks
    assert task.tables is not None
    asked = task.ask(item("samples", text="The meaning of life is"), prompter())
    assert [r.temperature for r in asked if isinstance(r, Generate)] == [1.2, 0.0]
    sample = task.score(item("samples", text="x"), [Generated("a"), Generated("b")])
    (table,) = task.tables([sample])
    assert (table.head, table.rows) == (("prompt", "temperature 1.2", "greedy"), [("x", "a", "b")])


def test_samples_need_no_data() -> None:
    prompts = read_items(TASKS["samples"], parse(["--model", "m", "--tasks", "samples"]))
    assert prompts[0].text == "The meaning of life is"
    assert any(writing(one.text) is Writing.CHINESE for one in prompts)
