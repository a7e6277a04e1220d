"""python -m train.merge RUN_OR_CHECKPOINT OUT: see docs/merge.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from train.config import MergeConfig
from train.merge.places import find_run, refuse_foreign
from zerotune.common.console import say
from zerotune.common.errors import UserError
from zerotune.common.masking import hide_secrets, printable
from zerotune.common.process_exit import exit_quietly_on_ctrl_c


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge, print the report, and return the exit code."""
    given = parser().parse_args(arguments)
    hide_secrets()
    settings = MergeConfig(checkpoint=given.checkpoint, weights=given.weights, quantized_base=given.quantized_base)
    try:
        find_run(given.source)
        refuse_foreign(given.out)
        say(f"merging {given.source} into {given.out}")
        say("importing libraries")
        from train.engine.quiet import quiet_libraries  # seconds of imports, which --help does not wait for
        from train.merge.steps import merge

        quiet_libraries(main_process=True)
        report = merge(given.source, given.out, settings, base=given.base, code=given.trust_remote_code)
    except UserError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        return error.exit_code
    sys.stdout.write(printable("\n".join(report.lines()) + "\n"))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    about = "Merge a run's checkpoint with its base model into one Hugging Face folder, and check its answers."
    made = argparse.ArgumentParser(prog="python -m train.merge", description=about)
    add = made.add_argument
    add("source", type=Path, metavar="RUN_OR_CHECKPOINT", help="a run folder, or one of its checkpoints")
    add("out", type=Path, metavar="OUT", help="the folder to make; an earlier merge there is replaced")
    add("--checkpoint", choices=("best", "last"), default="best", help="which one of a run (default: best)")
    kinds = ("auto", "float32", "bfloat16", "float16")
    add("--weights", choices=kinds, default="auto", help="storage of the weights (default: that of the base model)")
    bases = ("original", "dequantized")
    add("--quantized_base", choices=bases, default="original", help="for QLoRA: which base (default: original)")
    add("--base", metavar="FOLDER", help="where the base model lies now, if it has moved since training")
    add("--trust_remote_code", action="store_true", help="run code that comes with the base model")
    return made


if __name__ == "__main__":
    exit_quietly_on_ctrl_c()
    sys.exit(main())
