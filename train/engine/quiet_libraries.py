"""Keeps library messages for developers off the user's terminal."""

from __future__ import annotations

import logging
import sys
import warnings

from transformers.utils import logging as transformers_logging

_LIBRARIES = r"(accelerate|bitsandbytes|deepspeed|peft|torch|transformers)(\.|$)"


def quiet_libraries(main_process: bool) -> None:
    """Hide deprecation warnings of libraries, and loading bars except on the main process's terminal.

    `python -W` and $PYTHONWARNINGS take precedence.
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning, module=_LIBRARIES)
        warnings.filterwarnings("ignore", "Position ids are not supported", module="peft")  # right after a prompt
    # When PEFT imports it, it recommends a package with a kernel that is never used (`keep_layout` in
    # zerotune.models.quantization).
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if not main_process or not sys.stderr.isatty():  # in a file, a bar is a very long line
        transformers_logging.disable_progress_bar()
