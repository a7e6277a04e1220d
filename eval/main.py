"""Evaluate and compare checkpoints: `accelerate launch eval/main.py --help`, or `python -m eval --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Run as a script, eval/ itself comes first, and the package would not be found without an installation.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eval.config import Config, parse
from eval.errors import UserError
from eval.leave import leave, let_the_first_speak, tell_launcher
from eval.masking import hide_secrets, printable
from eval.preflight import check_inputs
from eval.progress import say, shortened


def _checked(arguments: Sequence[str]) -> Config:
    """The configuration, its checkpoints and data looked at. What follows imports torch, and takes seconds."""
    try:
        config = parse(arguments)
        check_inputs(config)
    except UserError:
        let_the_first_speak()
        raise
    return config


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0, or that of the UserError whose message was printed."""
    hide_secrets()
    try:
        config = _checked(arguments)
        say(f"evaluation: {', '.join(config.task_names)} of {shortened(config.folders)} -> {config.out}")
        say("importing libraries")
        from eval.evaluation import evaluate
        from eval.ranks import join
        from eval.report import show, write
        from eval.speaker import open_journal

        ranks = join()
        evaluation = evaluate(config, ranks, open_journal(config, ranks))
        if ranks.index == 0:
            write(evaluation, Path(config.out), Path(config.tensorboard) if config.tensorboard else None)
            show(evaluation.result)
            print(printable(f"\nReport: {Path(config.out) / 'report.html'}"))
        ranks.close()
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        message = printable(f"error: {error}" if rank == "0" else f"error (rank {rank}): {error}")
        print(message, file=sys.stderr)
        tell_launcher(message)
        return error.exit_code
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
