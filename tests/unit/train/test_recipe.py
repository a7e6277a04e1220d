"""Recipes: what is accepted, what is refused and how it is said, and that nothing is lost on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.commands import seconds_of
from train.config import Config, ModelConfig, SourceConfig, TuningConfig
from train.fingerprint import FREE_KEYS, PLACES, bound, fingerprint, flat
from train.model_sizes import sizes_of
from train.recipe import load, parse, to_yaml
from zerotune.common.errors import UserError
from zerotune.common.schema import checked, fields_of, is_section, leaf_keys
from zerotune.common.yaml_lines import dotted, dump_yaml, parse_yaml

ROOT = Path(__file__).resolve().parents[3]
MINIMAL = """\
model:
  path: somewhere
data:
  train:
    - path: a.jsonl
      format: qa
"""


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL)
    return path


def parsed(path: Path, *options: str) -> Config:
    return parse(["--config", str(path), *options])


def refusal(path: Path, *options: str) -> str:
    with pytest.raises(UserError) as caught:
        parsed(path, *options)
    assert caught.value.exit_code == 64
    return str(caught.value).replace(f"{path.parent}{os.sep}", "")


def added(recipe: Path, text: str) -> Path:
    recipe.write_text(MINIMAL + text)
    return recipe


class TestComposition:
    def test_defaults_are_those_of_the_dataclasses(self, recipe: Path) -> None:
        source = SourceConfig("a.jsonl", "qa")
        base = Config()
        assert parsed(recipe) == dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, path="somewhere"),
            data=dataclasses.replace(base.data, train=[source]),
        )

    def test_later_files_override_and_mappings_merge(self, recipe: Path, tmp_path: Path) -> None:
        later = tmp_path / "later.yaml"
        later.write_text("tuning: {kind: lora, lora: {rank: 4}}\nmodel: {revision: abc}\n")
        last = tmp_path / "last.yaml"
        last.write_text("tuning: {lora: {alpha: 8}}\n")
        config = parsed(recipe, "--config", str(later), "--config", str(last))
        assert (config.model.path, config.model.revision) == ("somewhere", "abc")
        assert (config.tuning.kind, config.tuning.lora.rank, config.tuning.lora.alpha) == ("lora", 4, 8.0)
        assert parsed(recipe, "--config", str(last), "--config", str(later)).tuning.lora.rank == 4

    def test_lists_are_replaced(self, recipe: Path, tmp_path: Path) -> None:
        later = tmp_path / "later.yaml"
        later.write_text("data: {train: [{path: b.txt, format: text}]}\n")
        assert parsed(recipe, "--config", str(later)).data.train == [SourceConfig("b.txt", "text")]

    def test_options_override_files_at_any_position(self, recipe: Path) -> None:
        first = parse(["--optim.learning_rate", "1e-3", "--config", str(recipe)])
        assert first.optim.learning_rate == 1e-3
        assert parsed(recipe, "--optim.learning_rate=1", "--optim.learning_rate=2").optim.learning_rate == 2.0

    @pytest.mark.parametrize(
        ("option", "text", "value"),
        [
            ("optim.learning_rate", "1e-4", 1e-4),
            ("optim.learning_rate", "1", 1.0),
            ("run.stop_after_minutes", "null", None),
            ("model.revision", "1e10", "1e10"),
            ("model.revision", "null", None),
            ("run.folder", "runs/a b$(c) 中", "runs/a b$(c) 中"),
            ("run.folder", "7", "7"),
            ("data.system_prompt", "", ""),
            ("batch.shuffle", "false", False),
            ("tuning.lora.targets", "[q_proj, v_proj]", ["q_proj", "v_proj"]),
            ("tuning.lora.targets", "q_proj", "q_proj"),
            ("duration.max_tokens", "1_000", 1000),
        ],
    )
    def test_option_values(self, recipe: Path, option: str, text: str, value: Any) -> None:
        found = flat(parsed(recipe, f"--{option}", text))[option]
        assert found == value
        assert type(found) is type(value)

    def test_one_field_of_one_source(self, recipe: Path) -> None:
        words = ["--data.train.0.path", "b.csv", "--data.train.0.columns.question", "q"]
        assert parsed(recipe, *words).data.train == [SourceConfig("b.csv", "qa", {"question": "q"})]
        words = ["--data.train.1", "{path: c.txt, format: text}", "--data.train.1.weight", "2"]
        assert parsed(recipe, *words).data.train[1] == SourceConfig("c.txt", "text", weight=2.0)

    def test_print_config_prints_all_keys_and_exits(self, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            parsed(recipe, "--print_config", "--optim.beta2", "0.95")
        assert stop.value.code == 0
        shown = parse_yaml(capsys.readouterr().out, "shown").value
        assert shown["optim"]["beta2"] == 0.95
        assert checked(Config, shown) == (parsed(recipe, "--optim.beta2", "0.95"), [])
        assert {".".join(map(str, key)) for key in leaf_keys(Config)} == set(flat(parsed(recipe)))


class TestRefusals:
    """One message with place, key and cure."""

    def test_unknown_key(self, recipe: Path) -> None:
        text = refusal(added(recipe, "optim:\n  learning_rte: 1e-4\n"))
        assert text == "x.yaml:8: unknown key optim.learning_rte; did you mean optim.learning_rate?"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("lora_rank: 8\n", "x.yaml:7: unknown key lora_rank; did you mean tuning.lora.rank?"),
            ("learning_rate: 1\n", "x.yaml:7: unknown key learning_rate; did you mean optim.learning_rate?"),
            ("optim: {lr: 1}\n", "x.yaml:7: unknown key optim.lr; did you mean optim.learning_rate?"),
            ("zzzzz: 1\n", "x.yaml:7: unknown key zzzzz; --help lists all keys."),
            ("optim:\n  learning_rate: abc\n", "x.yaml:8: optim.learning_rate: expected a number, got 'abc'."),
            ("optim: {learning_rate: '1e-4'}\n", "x.yaml:7: optim.learning_rate: expected a number, got '1e-4'."),
            ("optim: {learning_rate: true}\n", "x.yaml:7: optim.learning_rate: expected a number, got true."),
            ("optim: {learning_rate: .nan}\n", "x.yaml:7: optim.learning_rate: expected a number, got nan."),
            ("optim: {learning_rate: null}\n", "x.yaml:7: optim.learning_rate: expected a number, got null."),
            ("run: {seed: 1.5}\n", "x.yaml:7: run.seed: expected a whole number, got 1.5."),
            ("run: {folder: 7}\n", "x.yaml:7: run.folder: expected text, got 7."),
            ("batch: {shuffle: yes}\n", "x.yaml:7: batch.shuffle: expected true or false, got 'yes'."),
            ("optim: 3\n", "x.yaml:7: optim: expected a mapping of keys to values, got 3."),
            ("optim:\n", "x.yaml:7: optim: expected a mapping of keys to values, got null."),
            (
                "optim: {schedule: cos}\n",
                "x.yaml:7: optim.schedule: expected one of cosine, linear, constant, got 'cos'.",
            ),
            (
                "tuning: {lora: {targets: [a, 1]}}\n",
                "x.yaml:7: tuning.lora.targets: expected text or a list of words, got ['a', 1].",
            ),
            ("run: {seed: 1}\nrun: {seed: 2}\n", "x.yaml:8: run is given twice (first at x.yaml:7)."),
            ("run:\n  seed: 1\n  seed: 2\n", "x.yaml:9: run.seed is given twice (first at x.yaml:8)."),
            ("run: &a {seed: 1}\n", "x.yaml:7: YAML anchors, aliases and tags (& * !) are not supported."),
            (
                "run: !!python/object/apply:os.system [ls]\n",
                "x.yaml:7: YAML anchors, aliases and tags (& * !) are not supported.",
            ),
        ],
    )
    def test_file(self, recipe: Path, text: str, message: str) -> None:
        assert refusal(added(recipe, text)) == message

    def test_broken_yaml_names_its_line(self, recipe: Path) -> None:
        assert refusal(added(recipe, "run: [1\n")).startswith("x.yaml:8: not valid YAML")
        assert refusal(added(recipe, "run: {seed: 1}\n\tx: 1\n")).startswith("x.yaml:8: not valid YAML")

    def test_source_fields(self, recipe: Path) -> None:
        model = "model: {path: m}\n"
        sources = "data:\n  train:\n    - path: a\n      format: qa\n    - path: b\n      fromat: qa\n"
        recipe.write_text(sources + model)
        assert refusal(recipe) == "x.yaml:6: unknown key data.train[1].fromat; did you mean data.train[1].format: qa?"
        recipe.write_text("data:\n  train:\n    - path: a\n" + model)
        known = "chat, qa, pr, io, text, labelled, tagged, preference"
        assert refusal(recipe) == f"x.yaml:3: data.train[0].format is missing: one of {known}."
        recipe.write_text("data:\n  train:\n    - {path: a, format: qb}\n" + model)
        message = f"x.yaml:3: data.train[0].format: expected one of {known}, got 'qb'."
        assert refusal(recipe) == message

    def test_files(self, recipe: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"y\.yaml: there is no such recipe; did you mean .*x\.yaml\?"):
            parse(["--config", str(tmp_path / "y.yaml")])
        recipe.write_bytes(b"run:\n  folder: \xff\n")
        assert "not UTF-8" in refusal(recipe)
        recipe.write_text("- a\n")
        assert "x.yaml:1: a recipe is a mapping" in refusal(recipe)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--optim.learning_rte", "1"], "unknown option --optim.learning_rte; did you mean --optim.learning_rate?"),
            (["--lr", "1"], "unknown option --lr; did you mean --optim.learning_rate?"),
            (["--data.train.0.pth", "1"], "unknown option --data.train.0.pth; did you mean --data.train.0.path?"),
            (["--optim.learning_rate", "x"], "optim.learning_rate: expected a number, got 'x'."),
            (["--run.seed", "null"], "run.seed: expected a whole number, got null."),
            (["--run.seed"], "--run.seed needs a value."),
            (["x.jsonl"], "'x.jsonl' belongs to no option; quote values with spaces, separate lists by commas."),
            (["--data.train.2.path", "b"], "there is no item 2; the next free number is 1."),
            (
                ["--data.train.1.path", "b"],
                "data.train[1].format is missing: one of chat, qa, pr, io, text, labelled, tagged, preference.",
            ),
        ],
    )
    def test_command_line(self, recipe: Path, options: list[str], message: str) -> None:
        assert refusal(recipe, *options) == f"command line: {message}"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("optim: {learning_rate: abc}\n", "x.yaml:7: optim.learning_rate: expected a number, got 'abc'."),
            ("head: {labels: [a, 1]}\n", "x.yaml:7: head.labels[1]: expected text, got 1."),
            (
                "data: {train: [3, {path: a}]}\n",
                "x.yaml:7: data.train[0]: expected a mapping of keys to values, got 3.",
            ),
            (
                "data: {train: {path: a}}\n",
                "x.yaml:7: data.train: expected a list of mappings, each with path, format,",
            ),
            ("data: {train: a.jsonl}\n", "x.yaml:7: data.train: expected a list of mappings, each with path, format,"),
            (
                "data: {train: [{path: a, format: qa, filter: {a: {b: 1}}}]}\n",
                "data.train[0].filter.a: expected text or",
            ),
            (f"run: {{seed: {'9' * 5000}}}\n", "x.yaml:7: run.seed: expected a whole number, got '999"),
            (f"head: {{labels: {'[' * 250}{']' * 250}}}\n", "these values cannot be read: recursion limit exceeded"),
            ('run: {folder: "\\ud800"}\n', "a value is not UTF-8 text: "),
        ],
    )
    def test_values_of_the_wrong_shape(self, tmp_path: Path, text: str, message: str) -> None:
        recipe = tmp_path / "x.yaml"
        recipe.write_text("model:\n  path: somewhere\n\n\n\n\n" + text)
        assert message in refusal(recipe, *(["--data.train", "[{path: a, format: qa}]"] * ("data:" not in text)))

    def test_replaced_invalid_values_are_no_error(self, recipe: Path) -> None:
        wrong = added(recipe, "optim: {learning_rate: abc}\nbatch: 3\n")
        config = parsed(wrong, "--optim.learning_rate", "1", "--batch.shuffle", "false")
        assert (config.optim.learning_rate, config.batch.shuffle) == (1.0, False)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.dictionaries(st.sampled_from("optim data run model tuning ppo x".split()), PLAIN, max_size=4), PLAIN)
    @example({"optim": 3}, [None, {}])
    def test_any_yaml_content_gives_one_message(self, tmp_path: Path, first: Any, second: Any) -> None:
        files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
        for file, value in zip(files, (first, {"data": {"train": second}}), strict=True):
            file.write_text(dump_yaml(value))
        options = [word for file in files for word in ("--config", str(file))]
        with contextlib.suppress(UserError):
            parse([*options, "--data.train.0.path", "x", "--optim.name", "adafactor"])

    def test_trust_remote_code_only_on_the_command_line(self, recipe: Path) -> None:
        assert parsed(recipe, "--model.trust_remote_code", "true").model.trust_remote_code
        recipe.write_text(MINIMAL.replace("  path: somewhere", "  path: somewhere\n  trust_remote_code: true"))
        assert refusal(recipe).startswith("x.yaml:3: model.trust_remote_code runs code that comes with")
        recipe.write_text(MINIMAL.replace("  path: somewhere", "  path: somewhere\n  trust_remote_code: false"))
        assert not parsed(recipe).model.trust_remote_code


class TestContradictions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ("tuning.quantization=nf4", "tuning.quantization: nf4 freezes the weights and needs tuning.kind: lora"),
            ("tuning.quantization=int8 tuning.kind=prompt", "needs tuning.kind: lora, not prompt"),
            ("tuning.kind=prompt batch.layout=packed", "batch.layout: prompt tuning"),
            ("batch.tokens_per_step=100 data.max_length_tokens=50", "exceeds batch.tokens_per_step, 100"),
            ("data.max_length_tokens=5000", "data.max_length_tokens: 5000 exceeds batch.tokens_per_micro_batch"),
            ("data.streaming=true", "data.streaming: streamed data has no known length"),
            ("data.streaming=true duration.max_steps=3", "checkpoint.every_steps: streamed data has no known end"),
            (
                "data.streaming=true duration.max_steps=3 checkpoint.every_steps=1"
                " data.validation=[{path: v, format: qa}]",
                "validation.every_steps: streamed data has no known end of an epoch",
            ),
            (
                "data.streaming=true duration.max_steps=3 checkpoint.every_steps=1 duration.max_epochs=1.5",
                "duration.max_epochs: streamed data has no known length; set a whole number",
            ),
            ("data.train=[]", "data.train: is empty"),
            ("model.path=", "model.path: is missing"),
            ("data.validation_fraction=0.1 data.validation=[{path: v, format: qa}]", "data.validation is set as well"),
            (
                "data.validation_fraction=0.1 data.streaming=true duration.max_steps=3",
                "has no known length; set data.validation",
            ),
            (
                "validation.metric=bleu",
                "validation.metric: causal_lm has no bleu; it has loss, perplexity, exact_match",
            ),
            ("validation.metric=exact_match", "validation.metric: exact_match needs validation.exact_match_rows"),
            ("validation.patience=2", "early stopping needs held-out data"),
            ("validation.exact_match_rows=2", "validation.exact_match_rows: needs held-out data"),
            ("duration.max_epochs=null", "duration.max_epochs: nothing ends the run"),
            ("optim.learning_rate=-1", "optim.learning_rate: must be greater than or equal to 0, not -1"),
            ("optim.beta2=1", "optim.beta2: must be less than 1, not 1"),
            ("optim.spike_factor=1", "optim.spike_factor: must be greater than 1, not 1"),
            ("objective=ppo optim.spike_factor=3", "optim.spike_factor: PPO's loss rises and falls around 0"),
            ("optim.name=adafactor optim.beta2=0.95", "optim.beta2: adafactor does not use it"),
            ("data.train.0.weight=0", "data.train[0].weight: must be greater than 0, not 0"),
            ("data.train.0.fraction=1.5", "data.train[0].fraction: must be less than or equal to 1, not 1.5"),
            ("duration.max_steps=0", "duration.max_steps: must be greater than 0, not 0"),
            ("checkpoint.keep_last=0", "checkpoint.keep_last: must be greater than 0, not 0"),
            ("model.init=random tuning.kind=lora tuning.quantization=nf4", "random weights cannot be quantised"),
        ],
    )
    def test_is_refused(self, recipe: Path, options: str, words: str) -> None:
        text = refusal(recipe, *(f"--{option}" for option in re.split(r" (?=[a-z_.0-9]+=)", options)))
        assert words in text
        assert text.startswith(("command line: ", "x.yaml"))

    @pytest.mark.parametrize("streaming", ["false", "true"])
    def test_missing_duration_gives_one_message(self, recipe: Path, streaming: str) -> None:
        words = ["--duration.max_epochs", "null", "--checkpoint.every_steps", "5"]
        text = refusal(recipe, *words, "--data.streaming", streaming)
        assert len(text.splitlines()) == 1
        assert "duration.max_steps or duration.max_tokens" in text

    def test_streaming_needs_only_duration_and_checkpoint_steps(self, recipe: Path) -> None:
        words = ["--data.streaming", "true", "--duration.max_steps", "3", "--checkpoint.every_steps", "1"]
        assert parsed(recipe, *words).data.streaming

    def test_negative_numbers_are_refused_everywhere(self, recipe: Path) -> None:
        """Every number of the configuration has a range."""
        numbers = [w for w in leaf_keys(Config) if {int, float} & set(_options(_kind(w)))]
        assert len(numbers) > 30
        for key in numbers:
            assert "must be greater than" in refusal(recipe, f"--{dotted(key)}", "-1"), dotted(key)

    def test_all_problems_are_reported_at_once(self, recipe: Path) -> None:
        text = refusal(added(recipe, "optim:\n  beta1: 2\n  beta2: 2\n"))
        assert [line.split(": ")[0] for line in text.splitlines()] == ["x.yaml:8", "x.yaml:9"]

    def test_missing_keys_are_reported_for_the_recipe_file(self, recipe: Path) -> None:
        recipe.write_text("run: {seed: 1}\n")
        assert all(line.startswith("x.yaml: ") for line in refusal(recipe).splitlines())

    def test_the_place_of_what_replaces_a_list_is_its_own(self, recipe: Path) -> None:
        assert refusal(recipe, "--data.train", "{path: x}").startswith("command line: data.train: expected a list")


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ("--ppo.clip 0.1 --tuning.kind full --tuning.lora.rank 8", ["--ppo.clip", "--tuning.lora.rank"]),
        ("--tuning.kind lora --tuning.lora.rank 8 --optim.beta1 0.8", []),
    ],
)
def test_an_option_that_the_run_does_not_use_is_warned_about(
    recipe: Path, capsys: pytest.CaptureFixture[str], words: str, warned: list[str]
) -> None:
    file = added(recipe, "ppo: {clip: 0.3}\n")  # in a file it may be for other runs
    parse(["--config", str(file), *words.split()], warns=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" has no effect")[0] for line in lines] == [f"WARNING {option}" for option in warned]


def _kind(key: tuple[str | int, ...]) -> Any:
    kind: Any = Config
    for step in key:
        kind = fields_of(kind)[step]
    return kind


def _options(kind: Any) -> tuple[Any, ...]:
    return getattr(kind, "__args__", (kind,))


class TestKeeping:
    def test_to_yaml_and_load_round_trip(self, recipe: Path, tmp_path: Path) -> None:
        words = ["--model.revision", "1e10", "--data.system_prompt", "yes", "--optim.learning_rate", "3e-5"]
        words += ["--model.trust_remote_code", "true", "--run.folder", "2024-01-01", "--data.chat_template", "a: b # c"]
        config = parsed(recipe, *words)
        path = tmp_path / "config.yaml"
        path.write_text(to_yaml(config))
        assert load(path) == config
        assert fingerprint(load(path)) == fingerprint(config)

    @settings(max_examples=100, deadline=None)
    @given(PLAIN)
    @example("\x85")
    @example(["a\u2028", {"k\u2029": " \n "}])
    def test_any_plain_value_survives_yaml(self, value: Any) -> None:
        assert parse_yaml(dump_yaml(value), "x").value == value

    def test_bound_keys_are_leaves_without_free_keys(self, recipe: Path) -> None:
        a = parsed(recipe)
        b = parsed(recipe, "--tuning.lora.rank=4", "--optim.beta1=0.5", "--run.folder=x", "--watch.every_steps=9")
        assert changed_keys(a, b) == ["tuning.lora.rank", "optim.beta1"]
        assert changed_keys(a, parsed(recipe, "--data.train.0.weight=2")) == ["data.train"]
        assert changed_keys(a, parsed(recipe, "--checkpoint.keep_last=9", "--merge.at_end=false")) == []

    @pytest.mark.parametrize("key", [dotted(key) for key in leaf_keys(Config)])
    def test_fingerprint_covers_every_bound_key(self, recipe: Path, key: str) -> None:
        base = parsed(recipe)
        for user, chosen in USERS.items():
            if key.startswith(user):
                base = dataclasses.replace(base, **{re.split("[.=]", chosen)[0]: _replaced(base, *chosen.split("="))})
        changed = dataclasses.replace(base, **{key.split(".")[0]: _replaced(base, key)})
        places = [key for key, ending in PLACES.items() if not ending]
        free = any(key == name or key.startswith(f"{name}.") for name in (*FREE_KEYS, *places))
        assert (fingerprint(base) == fingerprint(changed)) == free

    @pytest.mark.parametrize("key", ["ppo.clip", "head.dropout", "tuning.lora.rank", "tuning.prompt.virtual_tokens"])
    def test_fingerprint_ignores_unused_keys(self, recipe: Path, key: str) -> None:
        base = dataclasses.replace(parsed(recipe), tuning=TuningConfig())
        changed = dataclasses.replace(base, **{key.split(".")[0]: _replaced(base, key)})
        assert fingerprint(base) == fingerprint(changed)


USERS = {  # beginnings of keys, and what uses them
    "ppo.": "objective=ppo",
    "causal_lm.": "objective=causal_lm",
    "numeric.": "objective=numeric",
    "head.": "objective=token_classification",
    "tuning.lora.": "tuning.kind=lora",
    "tuning.prompt.": "tuning.kind=prompt",
    "tuning.double_quantization": "tuning.quantization=nf4",
    "data.streaming_window_rows": "data.streaming=yes",
}


def changed_keys(a: Config, b: Config) -> list[str]:
    left, right = bound(a), bound(b)
    return [key for key in left if left[key] != right[key]]


def _replaced(config: Config, key: str, other: Any = "something else") -> Any:
    """The section of `key`, with that leaf set to something else."""
    first, *rest = key.split(".")
    if not rest:
        return other

    def inside(section: Any, names: list[str]) -> Any:
        value = getattr(section, names[0])
        return dataclasses.replace(
            section, **{names[0]: inside(value, names[1:]) if is_section(type(value)) else other}
        )

    return inside(getattr(config, first), rest)


class TestHelp:
    @pytest.fixture(scope="class")
    def run(self) -> tuple[str, float]:
        seconds, text = seconds_of([sys.executable, str(ROOT / "train" / "main.py"), "--help"])
        return text, seconds

    def test_it_is_complete(self, run: tuple[str, float]) -> None:
        text, _ = run
        for key in leaf_keys(Config):
            assert f"--{dotted(key)} " in text
        for name in fields_of(SourceConfig):
            assert f"--data.train.N.{name} " in text
        assert "--config FILE" in text
        assert "--print_config" in text

    def test_every_option_has_a_help_text(self, run: tuple[str, float]) -> None:
        text, _ = run
        options = text.split("\n  --")[1:]
        assert len(options) > 60
        for option in options:
            assert len(option.split()) > 3, option

    def test_it_fits_80_columns(self, run: tuple[str, float]) -> None:
        assert [line for line in run[0].splitlines() if len(line) > 80] == []

    def test_it_comes_within_a_second(self, run: tuple[str, float]) -> None:
        assert run[1] < 1.0


def test_a_user_error_prints_one_message_and_exits_64(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train" / "main.py"), "--config", str(tmp_path / "no.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 64
    assert result.stdout == ""
    assert result.stderr == f"{tmp_path}/no.yaml: there is no such recipe.\n"


class TestHeads:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--head.labels", "[a, b, a]"), "head.labels: a is listed twice"),
            (
                ("--head.class_weights", "balanced"),
                "head.class_weights: applies only to token_classification, sequence_classification",
            ),
            (
                ("--objective", "regression", "--head.labels", "[a, b]"),
                "head.labels: applies only to causal_lm, numeric, token_classification, sequence_classification",
            ),
            (("--objective", "reward_model"), "reward_model learns from preference, not from"),
        ],
    )
    def test_what_would_do_nothing_is_refused(self, recipe: Path, options: tuple[str, ...], words: str) -> None:
        assert words in refusal(recipe, *options)

    def test_the_number_token_loss_needs_its_package(self, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert parsed(recipe, "--causal_lm.number_token_weight=0.3").settings.number_token_weight == 0.3
        monkeypatch.setattr("train.recipe_checks_causal_lm.find_spec", lambda name: None)
        assert parsed(recipe).settings.number_token_weight == 0
        message = "causal_lm.number_token_weight: needs ntloss: pip install ntloss, or set it to 0"
        assert message in refusal(recipe, "--causal_lm.number_token_weight", "0.3")


class TestModelsFromScratch:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("gru",), "model.family: expected one of rnn, lstm, transformer or null"),
            (("rnn", "--model.heads", "2"), "model.heads: applies only to transformer (model.family is rnn)"),
            (("transformer", "--model.bptt_tokens", "9"), "model.bptt_tokens: applies only to rnn, lstm"),
            (("transformer", "--model.heads", "3"), "model.heads: a width of 256 cannot be divided by 3 heads"),
            (
                ("transformer", "--model.width", "33"),
                "model.width: a width of 33 cannot be divided by 1 heads: each head gets an even part",
            ),
            (("lstm", "--tuning.quantization", "nf4"), "the weights of a new model are random"),
            (
                ("lstm", "--tuning.kind", "lora", "--tuning.lora.targets", "[q_proj]"),
                "tuning.lora.targets: lstm has no q_proj; it has input, recurrent, embed_tokens, lm_head",
            ),
            (("rnn", "--tuning.kind", "prompt"), "tuning.kind: prompt tuning needs a model with attention, and rnn"),
            (("lstm", "--tuning.kind", "prompt"), "has none; use full or lora"),
            (
                ("rnn", "--model.tokenizer", "gpt2", "--tokenizer.kind", "word"),
                "tokenizer.kind: model.tokenizer names an existing tokenizer, gpt2; remove one of the two",
            ),
            (("rnn", "--tokenizer.split_punctuation", "true"), "applies only to tokenizer.kind: word; remove it"),
            (("rnn", "--tokenizer.vocabulary_size", "100"), "100 is too few for bpe, which has 256 bytes"),
            (("rnn", "--tokenizer.vocabulary_size", "1000000000000"), "must be less than or equal to 10000000"),
            (("rnn", "--objective", "regression"), "model.family: a new model learns causal_lm or numeric, not"),
        ],
    )
    def test_contradictions(self, recipe: Path, options: tuple[str, ...], words: str) -> None:
        assert words in refusal(recipe, "--model.path", "", "--model.family", *options)

    @pytest.mark.parametrize("family", ["rnn", "lstm", "transformer"])
    def test_an_output_layer_may_be_adapted(self, recipe: Path, family: str) -> None:
        options = ("--tuning.kind", "lora", "--tuning.lora.targets", "[lm_head, embed_tokens]")
        accepted = parse(["--config", str(recipe), "--model.path", "", "--model.family", family, *options])
        assert accepted.tuning.lora.targets == ["lm_head", "embed_tokens"]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--model.family", "rnn"), "model.family: starts a new model, and model.path names somewhere; remove one"),
            (("--model.width", "64"), "model.width: is the size of a new model; set model.family, or remove it"),
            (("--tokenizer.lowercase", "true"), "tokenizer.lowercase: is of the tokenizer that a new model learns"),
            (("--model.path", ""), "model.path: is missing; give a folder in Hugging Face layout, a hub name, or"),
        ],
    )
    def test_an_existing_model_has_its_own(self, recipe: Path, options: tuple[str, ...], words: str) -> None:
        assert words in refusal(recipe, *options)

    def test_the_stand_in_of_another_recipe_leaves_a_new_model_as_it_is(self, tmp_path) -> None:
        """recipes/cpu.yaml has a path; one on the command line, or one with weights, is a contradiction."""
        new, other = tmp_path / "new.yaml", tmp_path / "other.yaml"
        new.write_text("model: {family: rnn}\ndata: {train: [{path: x.jsonl, format: text}]}\n", encoding="utf-8")
        other.write_text("model: {path: somewhere, init: random}\n", encoding="utf-8")
        for both in ([new, other], [other, new]):
            model = parse([word for file in both for word in ("--config", str(file))]).model
            assert (model.family, model.path) == ("rnn", "")
        assert "remove one of the two" in refusal(new, "--config", str(other), "--model.path", "elsewhere")
        other.write_text("model: {path: somewhere}\n", encoding="utf-8")
        assert "new.yaml:1: model.family: starts a new model" in refusal(new, "--config", str(other))

    @pytest.mark.parametrize(
        ("family", "options", "sizes"),
        [
            ("rnn", {"depth": 1}, (64, 1, 1, 176)),
            ("lstm", {"depth": 6}, (384, 2, 6, 1024)),
            ("transformer", {"depth": 6}, (384, 6, 6, 1024)),
            ("transformer", {"width": 200}, (200, 4, 2, 544)),
            ("transformer", {"depth": 2, "heads": 8, "layers": 5, "feed_forward": 100}, (128, 5, 8, 100)),
        ],
    )
    def test_sizes_from_one_dial_or_by_name(self, family, options, sizes) -> None:
        assert dataclasses.astuple(sizes_of(ModelConfig(family=family, **options))) == sizes
