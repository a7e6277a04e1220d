"""Values of secret environment variables reach no terminal and no file, but where the user wrote them himself.

A recipe is kept as it is (config.yaml, the checkpoints' manifests), since resuming and merging read it again: `exposed`
finds what to warn of. Everything else is masked.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)
# Shorter values (TOKENIZERS_PARALLELISM=false) are no secrets, and masking them would tear holes into ordinary words.
_MIN_CHARACTERS = 6
_MASK = "***"


def _secrets() -> dict[str, str]:
    """value -> name of every environment variable named like a secret."""
    return {v: name for name, v in os.environ.items() if len(v) >= _MIN_CHARACTERS and _SECRET_NAME.search(name)}


def mask(text: str) -> str:
    """`text` with the value of every environment variable named like a secret replaced by ***."""
    masked: str = _replaced(text, _longest_first())
    return masked


def mask_all(value: Any) -> Any:
    """The same for every string inside dicts (keys included), lists, tuples and dataclasses."""
    secrets = _longest_first()
    return _replaced(value, secrets) if secrets else value


def _longest_first() -> list[str]:
    """The secrets in an order in which one may contain another."""
    return sorted(_secrets(), key=len, reverse=True)


def _replaced(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, _MASK)
        return value
    if isinstance(value, Mapping):
        return {_replaced(k, secrets): _replaced(v, secrets) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(v, secrets) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **_replaced(found, secrets))
    return value


def exposed(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, name of the variable) wherever a value holds that of an environment variable named like a secret."""
    secrets = _secrets()
    return [(key, name) for key, value in values.items() for secret, name in secrets.items() if secret in str(value)]


def hide_secrets() -> None:
    """Mask every log record of this process, whichever logger or handler it takes, and uncaught exceptions.

    The record factory is the one place that all records pass: filters of the root logger see only its own records, and
    libraries bring handlers of their own.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "hides_secrets", False):
        return

    def make_masked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # a wrong format string is reported by the handler
            return record
        if (masked := mask(message)) != message:
            record.msg, record.args = masked, ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = mask("".join(traceback.format_exception(*record.exc_info)).rstrip())
        if record.stack_info:
            record.stack_info = mask(record.stack_info)
        return record

    def print_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(mask("".join(traceback.format_exception(kind, error, trace))))

    make_masked.hides_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_masked)
    sys.excepthook = print_masked
