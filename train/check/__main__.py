"""`python -m train.check RECIPE [overrides]`: what the rows of a recipe hold. See docs/checking.md."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.recipe import parse
from train.recipe_command import Option, own_options, refuse_launcher, run_command, usage_text, whole_number
from zerotune.common.console import say
from zerotune.common.files import require_writable, write_atomically
from zerotune.common.mask_secrets import printable
from zerotune.common.process_exit import exit_process, exit_quietly_on_ctrl_c

PROG = "python -m train.check"
OWN = {
    "--output": Option("also write check.md, check.json and rows.html into this folder"),
    "--show": Option("rows of each source to show with their learned tokens", "1"),
    "--rows": Option("rows of a stream that are checked", "100000"),
}


@dataclass(frozen=True)
class Options:
    """The command line. recipe: the words that describe the recipe. rows: of a stream. show: of each source."""

    output: str
    rows: int
    show: int
    recipe: tuple[str, ...]


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Check the data of a recipe; returns the exit code."""
    return run_command(arguments, usage(prog), lambda words: _check(options(words)))


def options(words: Sequence[str]) -> Options:
    """The command line, read. Raises UserError."""
    own, recipe = own_options(words, OWN)
    rows, show = whole_number("--rows", own["--rows"]), whole_number("--show", own["--show"], 0)
    return Options(own["--output"], rows, show, recipe)


def usage(prog: str = PROG) -> str:
    """The help, in 80 columns."""
    head = [f"usage: {prog} RECIPE [RECIPE ...] [--output FOLDER]", "       [--data.max_length_tokens 2048 ...]"]
    about = (
        "Checks the rows of a recipe as training reads them: bad, truncated, repeated and garbled rows, overlap with "
        "the validation data, lengths, languages, classes; and whether prompts are those of inference. Limits "
        "(check.KEY) fail the check with exit code 65. Needs no GPU and no weights. Writes nothing but the token "
        "cache, which training then uses, and the files that are asked for."
    )
    return usage_text(head, about, OWN)


def _check(chosen: Options) -> int:
    refuse_launcher("a check")
    config = parse(chosen.recipe, warns=True)
    if chosen.output:
        require_writable(Path(chosen.output))
    from train.preflight import check_data

    check_data(dataclasses.replace(config, data=dataclasses.replace(config.data, on_bad_row="skip")))
    say("importing libraries")
    from train.check.collect import check
    from train.check.limits import EXIT_CODE
    from train.check.output import as_json, as_markdown, as_page, show

    report = check(config, chosen.rows, chosen.show)
    show(report)
    if chosen.output:
        folder = Path(chosen.output)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "check.md", as_markdown(report))
        write_atomically(folder / "check.json", as_json(report))
        write_atomically(folder / "rows.html", as_page(report))
        say(f"wrote check.md, check.json and rows.html into {folder}")
    sys.stderr.write(printable("".join(f"{line}\n" for line in report.exceeded)))
    return EXIT_CODE if report.exceeded else 0


if __name__ == "__main__":
    exit_quietly_on_ctrl_c()
    exit_process(main())
