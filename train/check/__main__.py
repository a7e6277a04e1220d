"""`python -m train.check RECIPE [overrides]`: what the rows of a recipe hold. See docs/checking.md."""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.command_words import refuse_slips, with_recipes
from train.config import Config
from train.recipe import parse
from zerotune.common.console import say
from zerotune.common.errors import UserError
from zerotune.common.files import require_writable, write_atomically
from zerotune.common.mask_secrets import hide_secrets, printable
from zerotune.common.process_exit import exit_process, exit_quietly_on_ctrl_c

PROG = "python -m train.check"
OWN = {
    "--output": "also write check.md and check.json into this folder",
    "--rows": "rows of a stream that are checked (default: 100000)",
}


@dataclass(frozen=True)
class Options:
    """The command line. recipe: the words that describe the recipe. rows: of a stream."""

    output: str
    rows: int
    recipe: tuple[str, ...]


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Check the data of a recipe; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if {"-h", "--help"} & set(words):
        sys.stdout.write(usage(prog))
        raise SystemExit(0)
    hide_secrets()
    try:
        return _check(options(words))
    except UserError as error:
        sys.stderr.write(printable(f"{error}\n"))
        return error.exit_code


def options(words: Sequence[str]) -> Options:
    """The command line, read. Raises UserError."""
    own, others, rest = {"--output": "", "--rows": "100000"}, list[str](), list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name not in own:
            others.append(word)
            continue
        own[name] = value if equals else rest.pop(0) if rest else ""
        if not own[name]:
            raise UserError(f"{name} needs a value: {OWN[name]}")
    refuse_slips(others, Config, [name.removeprefix("--") for name in OWN])
    if not own["--rows"].isdecimal() or own["--rows"] == "0":
        raise UserError(f"--rows {own['--rows']}: must be a whole number from 1 on")
    recipe = with_recipes(others)
    if "--config" not in {word.partition("=")[0] for word in recipe}:
        raise UserError("no recipe: give a file, or a name that `zerotune recipes` lists")
    return Options(own["--output"], int(own["--rows"]), tuple(recipe))


def usage(prog: str = PROG) -> str:
    """The help, in 80 columns."""

    def line(name: str, text: str) -> str:
        return textwrap.fill(text, 80, initial_indent=f"  {name:<22}", subsequent_indent=" " * 24)

    return "\n".join(
        [
            f"usage: {prog} RECIPE [RECIPE ...] [--output FOLDER]",
            "       [--data.max_length_tokens 2048 ...]",
            "",
            "Checks the rows of a recipe as training reads them: bad, truncated, repeated and",
            "garbled rows, overlap with the validation data, lengths, languages, classes.",
            "Needs no GPU and no weights. Writes nothing but the token cache, which training",
            "then uses, and the files that are asked for.",
            "",
            *(line(name, text) for name, text in OWN.items()),
            line("--KEY VALUE", "any key of the recipe, as in training (zerotune train --help)"),
            "",
        ]
    )


def _check(chosen: Options) -> int:
    if "RANK" in os.environ:
        raise UserError("a launcher has started this command (RANK is set): start a check without one")
    config = parse(chosen.recipe, warns=True)
    if chosen.output:
        require_writable(Path(chosen.output))
    from train.preflight import check_inputs

    check_inputs(dataclasses.replace(config, data=dataclasses.replace(config.data, on_bad_row="skip")))
    say("importing libraries")
    from train.check.collect import check
    from train.check.output import as_json, as_markdown, show

    report = check(config, chosen.rows)
    show(report)
    if chosen.output:
        folder = Path(chosen.output)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "check.md", as_markdown(report))
        write_atomically(folder / "check.json", as_json(report))
        say(f"wrote {folder / 'check.md'} and {folder / 'check.json'}")
    return 0


if __name__ == "__main__":
    exit_quietly_on_ctrl_c()
    exit_process(main())
