"""python -m eval.validate [evaluation options]: checks the options without reading models or data.

For scripts. Prints the answer cache that the evaluation would resume from between marks (slurm/common.sh: `ask`);
nothing between them if it would not resume.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from eval.config import parse
from zerotune.common.errors import UserError
from zerotune.common.mask_secrets import hide_secrets, printable
from zerotune.common.process_exit import exit_quietly_on_ctrl_c


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, or that of the UserError."""
    hide_secrets()
    try:
        config = parse(arguments)
    except UserError as error:
        sys.stderr.write(printable(f"{error}\n"))
        return error.exit_code
    journal = "" if config.resume == "never" else Path(config.out) / "journal"
    sys.stdout.write(f"[zerotune: {journal} :zerotune]\n")
    return 0


if __name__ == "__main__":
    exit_quietly_on_ctrl_c()
    sys.exit(main(sys.argv[1:]))
