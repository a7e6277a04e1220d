"""What may leave this process: no value of a secret environment variable, and no control character to a terminal.

A recipe is kept as it is (config.yaml, the checkpoints' manifests), since resuming and merging read it again: `exposed`
finds what to warn of. Everything else is masked.

A terminal obeys control characters: a row, a column name or an answer that holds an escape sequence could retitle the
window, hide lines or type for the user. They are shown as \\x1b and the like.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)
# Shorter values (TOKENIZERS_PARALLELISM=false) are no secrets, and masking them would tear holes into ordinary words.
_MIN_CHARACTERS = 6
_MASK = "***"
# C0 without tab and line feed, delete, and C1 (0x9b alone begins a sequence on some terminals).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _secrets() -> dict[str, str]:
    """value -> name of every environment variable named like a secret."""
    return {v: name for name, v in os.environ.items() if len(v) >= _MIN_CHARACTERS and _SECRET_NAME.search(name)}


def mask(text: str) -> str:
    """`text` with the value of every environment variable named like a secret replaced by ***."""
    return _masked(text, _longest_first())


def mask_all(value: Any) -> Any:
    """The same for every string inside dicts (keys included), lists, tuples and dataclasses.

    To be called before a text is escaped for Markdown, HTML or JSON: an escaped secret is not found any more.
    """
    secrets = _longest_first()
    return _each_text(value, lambda text: _masked(text, secrets)) if secrets else value


def printable(text: str) -> str:
    """`text` for a terminal: masked, and control characters but tab and line feed shown as \\x1b."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", mask(text))


def printable_all(value: Any) -> Any:
    """The same for every string inside dicts (keys included), lists, tuples and dataclasses."""
    return _each_text(value, printable)


def _longest_first() -> list[str]:
    """The secrets in an order in which one may contain another."""
    return sorted(_secrets(), key=len, reverse=True)


def _masked(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, _MASK)
    return text


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_each_text(k, change): _each_text(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_each_text(v, change) for v in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **_each_text(found, change))
    return value


def exposed(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, name of the variable) wherever a value holds that of an environment variable named like a secret."""
    secrets = _secrets()
    return [(key, name) for key, value in values.items() for secret, name in secrets.items() if secret in str(value)]


def hide_secrets() -> None:
    """Make every log record of this process printable, whichever logger or handler it takes, and uncaught exceptions.

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
        if (shown := printable(message)) != message:
            record.msg, record.args = shown, ()
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = printable("".join(traceback.format_exception(*record.exc_info)).rstrip())
        if record.stack_info:
            record.stack_info = printable(record.stack_info)
        return record

    def print_printable(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))

    make_masked.hides_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_masked)
    sys.excepthook = print_printable
