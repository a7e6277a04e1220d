"""The training templates of trl: which is chosen, what is learned with them, and that inference asks the same way."""

from __future__ import annotations

import hashlib
import json
import tomllib
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.data_tools import corpus_of, tokenizer
from tests.support.template_table import CASES, PAGE, SPECIAL, families, page, source, template_of, turns, unequal
from train.config import ModelConfig
from train.data import training_templates
from train.data.templates import ChatTemplate, prompt_text, render, resolve
from train.data.training_templates import ENDING, TRL, folder, training_template
from train.models.load import load_tokenizer
from zerotune.common.errors import UserError
from zerotune.data.conversations import Conversation
from zerotune.data.fields import RowError
from zerotune.inference.prompt import Prompter

PAIRED = [name for name in families() if (folder() / f"{name}{ENDING}.jinja").is_file()]


def resolved(own: Any) -> Any:
    return resolve("tokenizer", SimpleNamespace(chat_template=own, special_tokens_map=SPECIAL))


def test_the_documented_table_is_that_of_the_installed_templates() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert page(written) == written, "write it anew: python -m tests.support.template_table"


@pytest.mark.parametrize("name", PAIRED)
def test_pairs_are_those_of_trl(name: str) -> None:
    from trl.chat_template_utils import get_training_chat_template

    using = tokenizer()
    using.chat_template = source(name)
    found = training_template(source(name))
    assert found == (name, get_training_chat_template(using))


def test_the_version_is_the_declared_one() -> None:
    project = tomllib.loads((PAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert f"trl>={TRL},<1.17" in project["project"]["dependencies"]


@pytest.mark.parametrize(("found", "named"), [(None, "no trl is"), ("1.17.0", "trl 1.17.0 is"), ("1.1", "trl 1.1 is")])
def test_another_trl_is_one_message(found: str | None, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if found is None:
            raise training_templates.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(training_templates, "version", version)
    training_templates._pairs.cache_clear()
    with pytest.raises(UserError, match=rf"data\.chat_template: .*{named} installed: pip install 'trl==1\.16"):
        resolved(source("qwen3"))


@pytest.mark.parametrize("change", ["{}\n", "{}", " {}", "{} "])
def test_only_the_very_template_is_replaced(change: str) -> None:
    """Line ends and one at the end are nothing to Jinja; a space is."""
    own = source("qwen3").removesuffix("\n")
    is_own = change.strip("\n") == "{}"
    for text in (change.format(own), change.format(own).replace("\n", "\r\n")):
        assert resolved(text).trains_apart == is_own
        assert resolved(text).saved_text == text


def test_checkpoints_carry_the_own_template(tmp_path: Path) -> None:
    using = tokenizer()
    using.chat_template = source("qwen3")
    template = resolve("tokenizer", using)
    assert "generation" in template.text
    using.save_pretrained(tmp_path)
    saved = (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")
    assert saved == source("qwen3")
    assert template.hash == hashlib.sha256(saved.encode()).hexdigest()


def test_tools_have_the_template_that_transformers_takes() -> None:
    both = {"default": "{{ messages[0].content }}", "tool_use": source("qwen3")}
    template = resolved(both)
    assert (template.text, template.trains_apart) == (both["default"], False)
    assert template.of(CASES["one"]) is template
    assert template.of(CASES["tools"]).saved_text == both["tool_use"]
    using = tokenizer()
    using.chat_template = {"tool_use": both["tool_use"]}
    assert resolve("tokenizer", using).name == "plain"


def test_a_template_in_a_file_of_its_own_is_found(tmp_path: Path) -> None:
    """As older vision models have it; evaluation reads it too."""
    tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(ModelConfig(path=str(tmp_path))).chat_template is None
    for broken in ("{", "[]", '{"template": ""}'):
        (tmp_path / "chat_template.json").write_text(broken)
        with pytest.raises(UserError, match=r"chat_template\.json: holds no chat_template"):
            load_tokenizer(ModelConfig(path=str(tmp_path)))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": source("qwen3")}))
    assert load_tokenizer(ModelConfig(path=str(tmp_path))).chat_template == source("qwen3")
    (tmp_path / "chat_template.jinja").write_text(source("llama3"))
    assert load_tokenizer(ModelConfig(path=str(tmp_path))).chat_template == source("llama3")


def test_a_dict_of_templates_is_kept_whole(tmp_path: Path) -> None:
    using = tokenizer()
    using.chat_template = {"default": source("qwen3"), "tool_use": source("llama3")}
    resolve("tokenizer", using)
    using.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == source("qwen3")
    assert (tmp_path / "additional_chat_templates" / "tool_use.jinja").read_text(encoding="utf-8") == source("llama3")


@pytest.mark.parametrize("name", families())
def test_one_turn_is_learned_behind_the_prompt_of_inference(name: str) -> None:
    """With reasoning where the prompt opens thoughts; families that take text in parts only are refused."""
    found = {case: turns(name, case) for case in ("one", "one, thought", "one, <think>")}
    if isinstance(found["one"], str):
        assert name in ("idefics3", "llava_next", "smolvlm")
        return
    right = [own[0] for own in found.values() if not isinstance(own, str) and own[0].before == own[0].asked]
    assert any("A1" in turn.learned for turn in right) or name == "deepseekv3"  # drops thoughts, but asks for them


@pytest.mark.parametrize("name", PAIRED)
def test_where_the_own_template_can_be_learned_from_the_training_one_says_the_same(name: str) -> None:
    """So that runs begun with it go on: the same text, and the same of it learned."""
    template = template_of(name)
    own = ChatTemplate("own", template.inference_text, SPECIAL, template.saved_text, template.inference_text)
    for case, talk in CASES.items():
        try:
            expected = render(own, talk)
        except (RowError, UserError):  # what cannot be learned with it has no runs
            continue
        text, spans = render(template, talk)
        if (name, case) == ("diffusion_gemma", "tools"):  # its own has <|tool_response> end a call
            continue
        if name == "glm4moe":  # its own ends no turn: trl's teaches the model to stop
            assert text.removesuffix("<|user|>") == expected[0]
            continue
        assert (text, spans) == expected, case


@pytest.mark.parametrize("name", ["llama3", "llama3_1", "gemma3", "deepseekv3", "lfm2", "qwen2_5"])
@pytest.mark.parametrize("tokenizer_writes_it", [True, False])
def test_a_start_token_is_written_as_often_as_at_inference(
    name: str, tokenizer_writes_it: bool, tmp_path: Path
) -> None:
    """Once by a template that writes one itself, never by another, whatever the tokenizer does with plain texts."""
    using = tokenizer(bos=tokenizer_writes_it, bos_token="<s>")
    using.chat_template = source(name)
    talk = CASES["one"].messages
    corpus = corpus_of(tmp_path, [{"messages": talk}], "chat", using, chat_template="tokenizer", max_length_tokens=4000)
    prompt = using.apply_chat_template(talk[:1], add_generation_prompt=True, return_dict=False)
    starts = corpus.train.tokens(0)[0].tolist().count(using.bos_token_id)
    assert starts == list(prompt).count(using.bos_token_id) == (0 if name == "qwen2_5" else 1)


@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3_5_think", "qwen3_5_nothink", "nemotron_3_nano", "deepseekv3", "gptoss"]
)
def test_evaluation_scores_what_training_learns(name: str, tmp_path: Path) -> None:
    """The tokens of an answer and of all before it, also where the prompt opens thoughts that the answer has not."""
    using = tokenizer(bos_token="<s>")
    using.chat_template = source(name)
    talk, day = CASES["one"].messages, date(2026, 1, 31)
    prompter = Prompter(using, source(name), False, None, 8, 0, (), "tiny", day=day)
    (passage,) = prompter.assistant_turns(talk)  # type: ignore[arg-type]
    template = resolve("tokenizer", using, day)
    text, ((start, end),) = render(template, CASES["one"])
    assert using.decode(passage.ids) == text[:end]
    assert using.decode(passage.ids[passage.first :]) == text[start:end]


def test_a_prompt_without_an_answer_is_that_of_inference() -> None:
    talk = Conversation(CASES["more, thought"].messages[:3])
    for name in ("qwen3", "gptoss", "qwen3_5_think"):
        text, spans = render(template_of(name), talk)
        assert spans == []
        assert text == prompt_text(template_of(name), talk)
    assert render(template_of("qwen3_5_think"), talk)[0].endswith("<think>\n")


def test_a_family_that_trl_does_not_know_names_the_cure() -> None:
    own = source("qwen3").replace("<|im_start|>", "<|turn|>")
    with pytest.raises(RowError, match=r"writes earlier turns differently .* before message 1 .*generation"):
        render(resolved(own), CASES["more, thought"])


@pytest.mark.parametrize(
    ("name", "thought", "count"),
    [("deepseekv3", "", 1), ("nemotron_3_nano", "", 1), ("nemotron_3_nano", "R1", 0), ("qwen3", "", 0),
     ("qwen3_5_nothink", "R1", 1), ("qwen3_5_think", "", 0), ("gptoss", "", 0)],
)  # fmt: skip
def test_answers_that_will_be_asked_for_otherwise_are_counted(
    name: str, thought: str, count: int, tmp_path: Path
) -> None:
    using = tokenizer(bos_token="<s>")
    using.chat_template = source(name)
    answer = {"role": "assistant", "content": "A1"} | ({"reasoning_content": thought} if thought else {})
    rows = [{"messages": [{"role": "user", "content": "Q1"}, answer]}]
    lines = corpus_of(tmp_path, rows, "chat", using, chat_template="tokenizer", max_length_tokens=4000).lines
    assert any(f"trl's {name}_training.jinja" in line for line in lines)
    assert sum("1 last answers follow another prompt" in line for line in lines) == count


@pytest.mark.parametrize("name", PAIRED)
def test_tokens_before_an_answer_are_those_of_the_prompt(name: str, tmp_path: Path) -> None:
    """Also where a line feed of the prompt and one of the answer would be one token; of a row's first answer."""
    for number, (case, talk) in enumerate(CASES.items()):
        found = turns(name, case)
        if isinstance(found, str) or len(found) > 1 or found[0].before != found[0].asked:
            continue
        using = tokenizer(bos_token="<BOS>", eos_token="<EOS>", marks=("<EOS>", "<BOS>", "<think>", "</think>", "\n\n"))
        using.chat_template = source(name)
        row = {"messages": talk.messages} | ({"tools": talk.tools} if talk.tools else {})
        corpus = corpus_of(
            tmp_path / str(number), [row], "chat", using, chat_template="tokenizer", max_length_tokens=9000
        )
        ids, labels = corpus.train.tokens(0)
        template = resolve("tokenizer", using)
        prompt = using(prompt_text(template, Conversation(talk.messages[:-1], talk.tools)), add_special_tokens=False)
        first = len(prompt["input_ids"])
        assert ids[:first].tolist() == prompt["input_ids"]
        assert labels[first] == ids[first]
        assert labels[first - 1] == -100


def test_what_is_unequal_is_only_what_the_page_explains() -> None:
    reasons = {why for name in families() for _, why in unequal(name)}
    assert {part for why in reasons for part in why.split(", ")} <= {
        "earlier turns keep their thoughts",
        "the prompt opens thoughts",
        "the prompt closes thoughts",
        "the own template refuses the conversation before it",
    }
