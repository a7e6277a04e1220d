"""python -m eval.validate [evaluation options]: whether they can be meant; looks at no model and no data.

For scripts. Prints, between marks (slurm/common.sh: `ask`), the folder of the answers that the evaluation would use
again if it had to go on; nothing between them where it would use none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from eval.config import parse
from zerotune.common.errors import UserError
from zerotune.common.masking import hide_secrets, printable
from zerotune.common.process_exit import exit_quietly_on_ctrl_c


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0, or that of what is wrong with the options."""
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
