"""python -m train.run_folder --config recipes/NAME.yaml [...]: print the folder of that run.

For scripts, which find it between the markers, even if other output is around it (slurm/common.sh: `ask`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from train.recipe import parse
from zerotune.common.errors import UserError
from zerotune.common.mask_secrets import hide_secrets, printable
from zerotune.common.process_exit import exit_quietly_on_ctrl_c


def main(arguments: Sequence[str]) -> int:
    """Print the folder. Returns the exit code."""
    hide_secrets()
    try:
        sys.stdout.write(f"[zerotune: {parse(arguments).run.folder} :zerotune]\n")
    except UserError as error:
        sys.stderr.write(printable(f"{error}\n"))
        return error.exit_code
    return 0


if __name__ == "__main__":
    exit_quietly_on_ctrl_c()
    sys.exit(main(sys.argv[1:]))
