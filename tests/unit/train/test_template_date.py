"""Chat templates that read the clock: the day belongs to the run, or to the evaluation."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from eval.cached_model import open_answer_cache
from eval.config import parse
from eval.evaluation import Evaluation, evaluate
from eval.report.notes import circumstances
from tests.support import eval_checkpoints
from tests.support.data_tools import learned, recipe, tokenizer, write_jsonl
from tests.support.ranks import Solo
from tests.support.template_table import families, source
from tests.unit.eval.test_evaluation import ALONE
from train.config import SourceConfig
from train.data.prepare import Corpus, prepare, stream
from train.data.setup import run_day
from train.data.token_table import TABLE
from zerotune.common.errors import UserError
from zerotune.data.template_date import dated, reads_clock
from zerotune.inference.answer_cache import start_date
from zerotune.inference.prompt import Prompter

MONDAY, TUESDAY = datetime.date(2026, 11, 30), datetime.date(2026, 12, 1)
CLOCK = (
    "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %b %Y') + '<|im_end|>' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ROWS = [{"question": "法国的首都？", "answer": "巴黎。"}]
READING = [name for name in families() if "strftime_now" in source(name)]


class _Tuesday(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls(2026, 12, 1, 12, tzinfo=tz)


@pytest.fixture
def on_tuesday(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that transformers' `strftime_now` reads."""
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", _Tuesday)


def corpus(folder: Path, cache: str, day: datetime.date, **options: Any) -> Corpus:
    using = tokenizer()
    using.chat_template = options.pop("template", CLOCK)
    path = write_jsonl(folder / "rows.jsonl", ROWS)
    made = recipe(folder / cache, SourceConfig(str(path), "qa"), chat_template="tokenizer", max_length_tokens=200)
    found = prepare(made, using, 0, Solo(), day=day)
    assert learned(found, using) == ["巴黎。<|im_end|>"]
    assert ("Today is 30 Nov 2026" in using.decode(found.train.tokens(0)[0])) == (day == MONDAY and found.reads_clock)
    return found


@pytest.mark.parametrize("cache", ["the same", "another"])
def test_a_run_goes_on_the_next_day_with_its_own_day(cache: str, tmp_path: Path, on_tuesday: None) -> None:
    """With the token cache and without it."""
    began = corpus(tmp_path, "the same", MONDAY)
    resumed = corpus(tmp_path, cache, MONDAY)
    assert resumed.digest == began.digest
    assert resumed.reads_clock


def test_a_new_run_has_its_own_day_whatever_the_cache_holds(tmp_path: Path) -> None:
    old, new = corpus(tmp_path, "cache", MONDAY), corpus(tmp_path, "cache", TUESDAY)
    assert any("this run always uses 2026-12-01" in line for line in new.lines)
    assert old.digest != new.digest
    assert old.template_hash == new.template_hash
    assert len(list((tmp_path / "cache").rglob(TABLE))) == 2


def test_the_day_is_in_no_key_where_the_template_reads_no_clock(tmp_path: Path) -> None:
    template = CLOCK.replace("strftime_now('%d %b %Y')", "'a day'")
    old, new = (corpus(tmp_path, "cache", day, template=template) for day in (MONDAY, TUESDAY))
    assert (old.digest, old.reads_clock) == (new.digest, False)
    assert len(list((tmp_path / "cache").rglob(TABLE))) == 1


def test_a_stream_has_the_day_too(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    options = {"chat_template": "tokenizer", "streaming": True, "max_length_tokens": 200}
    digests = []
    for day in (MONDAY, MONDAY, TUESDAY):
        using = tokenizer()
        using.chat_template = CLOCK
        digests.append(stream(recipe(tmp_path, SourceConfig(str(path), "qa"), **options), using, 0, Solo(), day).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"template_date": "2026-11-30", "started": "2026-12-01T12:00:00Z"}, MONDAY),
        ({"started": "2026-11-30T12:00:00Z"}, MONDAY),
        ({"template_date": "soon"}, TUESDAY),
        ({"template_date": None, "started": 3}, TUESDAY),
        (None, TUESDAY),
    ],
)
def test_the_day_of_a_run_is_that_of_its_first_start(
    facts: Any, expected: datetime.date, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Today(datetime.date):
        @classmethod
        def today(cls) -> Any:
            return cls(2026, 12, 1)

    monkeypatch.setattr("train.data.setup.date", Today)
    if facts is not None:
        (tmp_path / "run.json").write_text(json.dumps(facts))
    assert run_day(str(tmp_path), Solo()) == expected


@pytest.mark.parametrize("name", READING)
def test_a_dated_template_writes_what_its_clock_would(name: str, on_tuesday: None) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    def written(template: str) -> str:
        talk = [{"role": "user", "content": "Q"}]
        texts, _ = render_jinja_template(conversations=[talk], chat_template=template, bos_token="<s>")
        return str(texts[0])

    assert reads_clock(source(name))
    fixed = dated(source(name), TUESDAY)
    assert not reads_clock(fixed)
    assert written(fixed) == written(source(name))
    assert written(dated(source(name), MONDAY)) != written(fixed)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ('strftime_now("%Y-%m-%d")', "2026-11-30"),
        ("strftime_now ( '%d/%m/%Y' )", "30/11/2026"),
        ('strftime_now("%Y年%m月%d日")', "2026年11月30日"),
        (r"strftime_now('it\'s \"%A\" %H:%M')", 'it\'s "Monday" 00:00'),
        ("'%Y'", "%Y"),
    ],
)
def test_formats(call: str, text: str) -> None:
    import jinja2

    assert jinja2.Template(dated("{{ " + call + " }}", MONDAY)).render() == text


def test_a_format_that_is_not_written_out_is_refused_where_it_would_be_used(tmp_path: Path) -> None:
    template = CLOCK.replace("'%d %b %Y'", "date_format")
    with pytest.raises(UserError, match=r"data\.chat_template: the tokenizer's own template: .* reads the clock"):
        corpus(tmp_path, "cache", MONDAY, template=template)
    using = Prompter(eval_checkpoints.tokenizer(), template, False, 128, 16, 0, (), "tiny")
    with pytest.raises(UserError, match=r"tiny: the chat template reads the clock"):
        using.chat_prompt([{"role": "user", "content": "Q"}])


def evaluated(folder: Path, *words: Any) -> Evaluation:
    rows = write_jsonl(folder / "rows.jsonl", [{"question": "Q?", "answer": "A"}])
    given = ["--tasks", "qa", "--data", rows, "--out", folder / "out", "--max_new_tokens", 2, *words]
    config = parse([str(word) for word in given])
    return evaluate(config, ALONE, open_answer_cache(config, ALONE))


def told(found: Evaluation) -> list[str | None]:
    return [model.template_date for model in found.result.models]


def test_evaluation_asks_with_the_day_of_the_run_or_the_given_one(tmp_path: Path, on_tuesday: None) -> None:
    """A checkpoint from elsewhere is asked with the other's; the report says which it was; known answers are found."""
    base, tuned = (eval_checkpoints.save(tmp_path / name, template=CLOCK) for name in ("base", "tuned"))
    (tuned / "run.json").write_text(json.dumps({"template_date": "2026-11-30"}))
    both = ["--baseline", base, "--model", tuned]
    first = evaluated(tmp_path, *both)
    assert told(first) == ["2026-11-30", "2026-11-30"]
    assert any("reads the clock and was given 2026-11-30" in line for line in circumstances(first.result))
    again = evaluated(tmp_path, *both)
    assert again.result.tasks[0].reused == {"base": 1, "tuned": 1}
    given = evaluated(tmp_path, *both, "--date", "2020-02-29")
    assert told(given) == ["2020-02-29", "2020-02-29"]
    assert given.result.tasks[0].reused["base"] == 0


def test_evaluation_asks_with_the_system_prompt_of_the_run_or_the_given_one(tmp_path: Path) -> None:
    base, tuned = (eval_checkpoints.save(tmp_path / name) for name in ("base", "tuned"))
    (tuned / "run.json").write_text(json.dumps({"config": {"data": {"system_prompt": "Be kind."}}}))
    both = ["--baseline", base, "--model", tuned]
    found = evaluated(tmp_path, *both)
    assert [model.system_prompt for model in found.result.models] == ["Be kind."] * 2
    assert any("without a system message have 'Be kind.'" in line for line in circumstances(found.result))
    for text in "", "Be brief.":
        again = evaluated(tmp_path, *both, "--system_prompt", text)
        assert [model.system_prompt for model in again.result.models] == [text] * 2
        assert again.result.tasks[0].reused["base"] == 0


def test_an_evaluation_goes_on_with_the_day_on_which_it_began(tmp_path: Path) -> None:
    base = eval_checkpoints.save(tmp_path / "base", template=CLOCK)
    today = told(evaluated(tmp_path, "--model", base))
    assert today == [datetime.datetime.now(datetime.UTC).date().isoformat()]
    (path,) = (tmp_path / "out" / "journal").glob("*.jsonl")
    path.rename(path.with_name(f"20261130T{path.name.partition('T')[2]}"))
    assert start_date(path.parent) == MONDAY
    assert told(evaluated(tmp_path, "--model", base)) == ["2026-11-30"]
    assert told(evaluated(tmp_path, "--model", base, "--resume", "never")) == today


def test_no_day_is_told_to_a_template_without_a_clock(tmp_path: Path) -> None:
    assert told(evaluated(tmp_path, "--model", eval_checkpoints.save(tmp_path / "base"))) == [None]
