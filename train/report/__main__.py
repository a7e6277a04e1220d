"""python -m train.report RUN [RUN ...]: see docs/watching.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from train.report import print_table, write_report
from train.report.compare import markdown, print_comparison, read_runs
from zerotune.common.arguments import Parser
from zerotune.common.errors import UserError
from zerotune.common.files import write_atomically
from zerotune.common.mask_secrets import hide_secrets, printable
from zerotune.common.process_exit import exit_quietly_on_ctrl_c

PROG = "python -m train.report"
ABOUT = (
    "Write RUN/report.md and its figures again, and print the table. With several runs: one table of the differences "
    "between their recipes, and of their results."
)


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Write and print the report. Returns the exit code."""
    hide_secrets()
    try:
        options = parser(prog).parse_args(arguments)
        if len(options.runs) > 1 or options.out:
            path = _compare(options.runs, options.out)
        else:
            path = write_report(options.runs[0])
            print_table(options.runs[0])
    except UserError as error:
        sys.stderr.write(printable(f"error: {error}\n"))
        return error.exit_code
    if path:
        sys.stdout.write(printable(f"{path}\n"))
    return 0


def _compare(folders: Sequence[Path], out: Path | None) -> Path | None:
    runs, others = read_runs(folders)
    for line in others:
        sys.stderr.write(printable(f"{line}\n"))
    print_comparison(runs)
    if out:
        write_atomically(out, markdown(runs))
    return out


def parser(prog: str = PROG) -> Parser:
    result = Parser(prog=prog, description=ABOUT)
    result.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder, such as runs/demo, or several")
    result.add_argument("--out", type=Path, metavar="FILE", help="write the table of several runs as Markdown too")
    return result


if __name__ == "__main__":
    exit_quietly_on_ctrl_c()
    sys.exit(main())
