"""`python -m train.report RUN`: write RUN/report.md and its figures anew, and print the table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from train.errors import UserError
from train.report import print_table, write_report


def main() -> int:
    """Exit code: 0, or that of the UserError whose message is printed."""
    parser = argparse.ArgumentParser(prog="python -m train.report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, such as runs/demo")
    run = parser.parse_args().run
    try:
        path = write_report(run)
        print_table(run)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
