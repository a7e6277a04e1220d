"""Evaluate and compare checkpoints: `accelerate launch eval/main.py --help`, or `python -m eval --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p).resolve() != ROOT / "eval")]  # runs uninstalled too

from zerotune.common.process_exit import (
    CTRL_C,
    exit_process,
    exit_quietly_on_ctrl_c,
    report_to_launcher,
    wait_for_first_process,
)

exit_quietly_on_ctrl_c()  # the following imports take a while

from eval import plan
from eval.config import Config, parse
from eval.preflight import check_inputs
from zerotune.common.console import say, shortened
from zerotune.common.errors import UserError
from zerotune.common.launcher_watch import Sentinel, write_stderr
from zerotune.common.mask_secrets import hide_secrets, printable


def _checked(arguments: Sequence[str]) -> Config:
    """Parse and validate the configuration, its checkpoints and data, before torch is imported, which takes seconds."""
    try:
        config = parse(arguments)
        check_inputs(config)
    except UserError:
        wait_for_first_process()
        raise
    return config


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0, that of the UserError whose message was printed, or 130 after Ctrl-C."""
    hide_secrets()
    out: Path | None = None  # set once the arguments are parsed
    with Sentinel() as sentinel:
        try:
            if plan.PLAN in arguments:
                plan.main(arguments)
                return 0
            config = _checked(arguments)
            out = Path(config.out)
            _run(config)
        except KeyboardInterrupt:
            return _interrupted(out)
        except Exception as error:
            if sentinel.interrupted is not None:  # another rank exited first and broke the process group
                return _interrupted(out)
            if not isinstance(error, UserError):
                raise
            rank = os.environ.get("RANK", "0")
            message = printable(f"error: {error}" if rank == "0" else f"error (rank {rank}): {error}")
            print(message, file=sys.stderr)
            report_to_launcher(message)
            return error.exit_code
    return 0


def _run(config: Config) -> None:
    say(f"evaluation: {', '.join(config.task_names)} of {shortened(config.folders)} -> {config.out}")
    say("importing libraries")
    from eval.cached_model import open_answer_cache
    from eval.distributed import join
    from eval.evaluation import evaluate
    from eval.report import show, write

    ranks = join()
    evaluation = evaluate(config, ranks, open_answer_cache(config, ranks))
    if ranks.index == 0:
        write(evaluation, Path(config.out), Path(config.tensorboard) if config.tensorboard else None)
        show(evaluation.result)
        print(printable(f"\nReport: {Path(config.out) / 'report.html'}"))
    ranks.close()


def _interrupted(out: Path | None) -> int:
    """Print how to resume. Returns the exit code."""
    if os.environ.get("RANK", "0") == "0":
        journal = out / "journal" if out else None
        kept = f" {journal} keeps the answers so far; the same command computes only the rest." if journal else ""
        write_stderr(printable(f"\nStopped by Ctrl-C.{kept if journal and journal.is_dir() else ''}"))
    return CTRL_C


if __name__ == "__main__":
    exit_process(main(sys.argv[1:]))
