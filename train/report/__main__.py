"""`python -m train.report RUN`: write RUN/report.md and its figures anew, and print the table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.masking import hide_secrets, printable
from train.errors import UserError
from train.report import print_table, write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or that of the UserError whose message is printed."""
    run = parser().parse_args(arguments).run
    hide_secrets()
    try:
        path = write_report(run)
        print_table(run)
    except UserError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        return error.exit_code
    sys.stdout.write(printable(f"{path}\n"))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m train.report", description=__doc__)
    made.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as runs/demo")
    return made


if __name__ == "__main__":
    sys.exit(main())
