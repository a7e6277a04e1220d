"""`python -m eval` is `eval/main.py`."""

import sys

from eval.leave import leave
from eval.main import main

leave(main(sys.argv[1:]))
