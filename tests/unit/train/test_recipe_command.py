"""Commands with a recipe and options of their own."""

from __future__ import annotations

import pytest

from train.recipe_command import Option, own_options, refuse_launcher, run_command, usage_text, whole_number
from zerotune.common.errors import CannotWriteError, UserError

OWN = {
    "--out": Option("a folder"),
    "--ranks": Option("several numbers", takes="several"),
    "--dry": Option("start nothing", takes="none"),
    "--many": Option("a number", "7"),
}


def test_own_options_and_the_recipe_are_divided():
    words = ["recipes/cpu.yaml", "--ranks", "8", "64", "--optim.learning_rate", "-1", "--dry", "--out=x"]
    values, recipe = own_options(words, OWN)
    assert values == {"--out": "x", "--ranks": "8 64", "--dry": "true", "--many": "7"}
    assert recipe == ("--config", "recipes/cpu.yaml", "--optim.learning_rate", "-1")
    assert own_options(["recipes/cpu.yaml"], OWN)[0] == {"--out": "", "--ranks": "", "--dry": "", "--many": "7"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipes/cpu.yaml", "--out"], "--out needs a value: a folder"),
        (["recipes/cpu.yaml", "--ranks", "--dry"], "--ranks needs a value"),
        (["recipes/cpu.yaml", "--dry=false"], "--dry takes no value"),
        (["recipes/cpu.yaml", "--rnaks", "8"], "unknown option --rnaks; did you mean --ranks?"),
        (["--dry"], "no recipe"),
    ],
)
def test_a_wrong_command_line_is_refused(words, message):
    with pytest.raises(UserError, match=message.replace("?", "[?]")):
        own_options(words, OWN)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "0", "٣", "x"])
def test_whole_numbers(text):
    assert whole_number("--n", "12") == 12
    with pytest.raises(UserError, match="must be a whole number from 1 on"):
        whole_number("--n", text)


def test_a_command_gives_help_or_an_exit_code(capsys):
    def refuse(words: list[str]) -> int:
        raise CannotWriteError(" ".join(words))

    assert run_command(["a", "b"], "usage", refuse) == 73
    assert capsys.readouterr().err == "a b\n"
    with pytest.raises(SystemExit):
        run_command(["a", "-h"], "usage", refuse)
    assert capsys.readouterr().out == "usage"


def test_the_usage_has_80_columns():
    text = usage_text(["usage: it"], "about " * 30, {**OWN, "--long": Option("word " * 40)})
    assert max(map(len, text.splitlines())) <= 80
    assert "a number (default: 7)" in text


def test_a_launcher_is_refused(monkeypatch):
    refuse_launcher("it")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="start it without one"):
        refuse_launcher("it")
