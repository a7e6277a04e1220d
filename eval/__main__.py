"""`python -m eval` runs `eval/main.py`."""

import sys

from eval.main import main
from zerotune.common.process_exit import exit_process

exit_process(main(sys.argv[1:]))
