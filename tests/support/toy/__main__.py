"""The programs with the additions of this package."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    program, *words = sys.argv[1:]
    if program == "train":
        from train.main import main
    elif program == "merge":
        from train.merge.__main__ import main
    elif program == "report":
        from train.report.__main__ import main
    else:
        from eval.main import main
    sys.exit(main(words))
