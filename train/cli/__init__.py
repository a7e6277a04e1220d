"""The command `zerotune train|eval|merge|report ...`. Each subcommand imports its modules when it is called."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import NoReturn

from zerotune.common.errors import UserError
from zerotune.common.mask_secrets import hide_secrets, printable
from zerotune.common.process_exit import exit_process, exit_quietly_on_ctrl_c
from zerotune.common.suggest import did_you_mean


@dataclass(frozen=True)
class Command:
    """about: a line of the help. place: `module:function` that takes the words after the command's name, and `options`,
    and returns the exit code.
    """

    about: str
    place: str
    options: dict[str, str] = field(default_factory=dict)


COMMANDS = {
    "train": Command("train from a recipe: zerotune train RECIPE [options]", "train.cli.launch:train"),
    "search": Command(
        "search over keys of a recipe: zerotune search RECIPE --space FILE",
        "train.search.__main__:main",
        {"prog": "zerotune search"},
    ),
    "plan": Command(
        "memory and time of a run before it starts: zerotune plan RECIPE",
        "train.plan.__main__:main",
        {"prog": "zerotune plan"},
    ),
    "check": Command(
        "check the data of a recipe: zerotune check RECIPE", "train.check.__main__:main", {"prog": "zerotune check"}
    ),
    "eval": Command("evaluate and compare checkpoints", "train.cli.launch:evaluate"),
    "merge": Command(
        "export a run as a Hugging Face folder: zerotune merge RUN OUT",
        "train.merge.__main__:main",
        {"prog": "zerotune merge"},
    ),
    "report": Command(
        "rewrite the report of a run, or compare several runs",
        "train.report.__main__:main",
        {"prog": "zerotune report"},
    ),
    "recipes": Command("list the recipes, or print one: zerotune recipes NAME", "train.cli.recipes:main"),
    "init": Command("copy recipes, configurations and batch scripts to a folder", "train.cli.init:main"),
    "env": Command("print versions, devices and settings for a bug report", "train.cli.environment:main"),
}
WORKING = ("train", "search", "check", "eval", "merge")  # must not end when a pager is closed
EXAMPLE = "zerotune train qwen2.5-0.5b-lora cpu"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The console script; ends the process."""
    exit_quietly_on_ctrl_c()
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0] not in WORKING:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `zerotune recipes | head`
    exit_process(run(words))


def run(words: list[str]) -> int:
    """Run a command and return its exit code; 64 for an unknown command."""
    hide_secrets()
    command, *rest = words or ["--help"]
    try:
        if command == "help" and rest and rest[0] in COMMANDS:
            return run([*rest, "--help"])
        if command in ("-h", "--help", "help"):
            sys.stdout.write(_help())
        elif command in ("-V", "--version", "version"):
            sys.stdout.write(_version())
        elif command in COMMANDS:
            found = COMMANDS[command]
            code: int = resolve_name(found.place)(rest, **found.options)
            return code
        else:
            near = did_you_mean(command, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
            raise UserError(f"unknown command {command!r}{near}")
    except UserError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        return error.exit_code
    return 0


def _help() -> str:
    lines = [f"  {name:<10}{command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: zerotune COMMAND ...",
            "",
            "Fine-tune language models on Accelerate and DeepSpeed, and evaluate them.",
            "",
            *lines,
            "",
            "zerotune COMMAND --help shows the options. A first run, on any machine:",
            f"  {EXAMPLE}",
            "",
        ]
    )


def _version() -> str:
    from zerotune.common.version import ROOT, code_state, own_version

    code = code_state(ROOT / "train")
    commit = f" (commit {code['commit'][:12]}{', modified' if code['dirty'] else ''})" if code else ""
    return f"zerotune {own_version() or 'of an unknown version'}{commit}\n"
