"""python -m eval.check [evaluation options]: whether they can be meant; looks at no model and no data. For scripts."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from eval.config import parse
from eval.errors import UserError
from eval.masking import hide_secrets, mask


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0, or that of what is wrong with the options."""
    hide_secrets()
    try:
        parse(arguments)
    except UserError as error:
        sys.stderr.write(mask(f"{error}\n"))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
