"""`python -m eval` is `eval/main.py`."""

import sys

from eval.main import main
from zerotune.common.process_exit import leave

leave(main(sys.argv[1:]))
