"""What libraries write for other developers, kept off the terminal of a user, who can do nothing about it."""

from __future__ import annotations

import logging
import sys
import warnings

from transformers.utils import logging as transformers_logging

_LIBRARIES = r"(accelerate|bitsandbytes|deepspeed|peft|torch|transformers)(\.|$)"


def quiet_libraries(main_process: bool) -> None:
    """Leave out what will be deprecated in libraries, and bars of loading but on the first process's terminal.

    `python -W` and $PYTHONWARNINGS win.
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning, module=_LIBRARIES)
        warnings.filterwarnings("ignore", "Position ids are not supported", module="peft")  # right after a prompt
    # Whenever peft imports it, it asks for a package with a kernel that is never used (`keep_layout` in
    # zerotune.models.quantization).
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if not main_process or not sys.stderr.isatty():  # in a file a bar is a line of a thousand pieces
        transformers_logging.disable_progress_bar()
