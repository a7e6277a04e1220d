"""python -m train.merge RUN_OR_CHECKPOINT OUT: see docs/merge.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from train.config import MergeConfig
from train.merge.check_paths import find_run, refuse_foreign
from zerotune.common.arguments import Parser
from zerotune.common.console import say
from zerotune.common.errors import UserError
from zerotune.common.mask_secrets import hide_secrets, printable
from zerotune.common.process_exit import exit_quietly_on_ctrl_c
from zerotune.common.schema import fields_of

PROG = "python -m train.merge"


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Merge, print the report, and return the exit code."""
    hide_secrets()
    try:
        options = parser(prog).parse_args(arguments)
        settings = MergeConfig(
            checkpoint=options.checkpoint, weights=options.weights, quantized_base=options.quantized_base
        )
        find_run(options.source)
        refuse_foreign(options.out)
        say(f"merging {options.source} into {options.out}")
        say("importing libraries")
        from train.engine.quiet_libraries import quiet_libraries  # takes seconds, and --help must not wait for it
        from train.merge.steps import merge

        quiet_libraries(main_process=True)
        report = merge(options.source, options.out, settings, base=options.base, code=options.trust_remote_code)
    except UserError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        return error.exit_code
    sys.stdout.write(printable("\n".join(report.lines()) + "\n"))
    return 0


def parser(prog: str = PROG) -> Parser:
    about = "Merge a run's checkpoint with its base model into one Hugging Face folder, and check its answers."
    result = Parser(prog=prog, description=about)
    add = result.add_argument
    add("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run folder, or one of its checkpoints")
    add("out", type=Path, metavar="OUT", help="the folder to write; an earlier merge there is replaced")
    for name, text in {
        "checkpoint": "which checkpoint of a run (default: best)",
        "weights": "data type of the weights (default: that of the base model)",
        "quantized_base": "QLoRA: merge into the original or the dequantized base (default: original)",
    }.items():
        add(f"--{name}", choices=get_args(fields_of(MergeConfig)[name]), default=getattr(MergeConfig, name), help=text)
    add("--base", metavar="FOLDER", help="the base model's folder, if it has moved since training")
    add("--trust_remote_code", action="store_true", help="run the base model's own code")
    return result


if __name__ == "__main__":
    exit_quietly_on_ctrl_c()
    sys.exit(main())
