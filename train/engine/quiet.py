"""What libraries write for other developers, kept off the terminal of a user, who can do nothing about it."""

from __future__ import annotations

import sys
import warnings

from transformers.utils import logging as transformers_logging

_LIBRARIES = r"(accelerate|bitsandbytes|deepspeed|peft|torch|transformers)(\.|$)"


def quiet_libraries(main_process: bool) -> None:
    """Leave out what will be deprecated in libraries, and bars of loading but those of the first process.

    `python -W` and $PYTHONWARNINGS win.
    """
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", category=FutureWarning, module=_LIBRARIES)
    if not main_process:
        transformers_logging.disable_progress_bar()
