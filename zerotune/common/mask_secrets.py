"""Masks secrets of the environment in all outputs, and control characters on terminals.

A recipe is stored unmasked (config.yaml, manifests of checkpoints), since resuming and merging read it again; `exposed`
finds secrets in it, for a warning. Everything else is masked.

A terminal executes control characters: an escape sequence in a row, a column name or an answer could change the window
title, hide lines or type for the user. They are printed as \\x1b and the like.
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

SECRET_NAME = re.compile(r"TOKEN(?!IZERS)|KEY|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|_(PWD|AUTH|PAT)$", re.IGNORECASE)
# Shorter values are rarely secrets, and masking them would damage ordinary words.
_MIN_CHARACTERS = 6
_MASK = "***"
# C0 without tab and line feed, delete, and C1 (0x9b alone begins a sequence on some terminals).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _secrets() -> dict[str, str]:
    """value -> name of every environment variable named like a secret."""
    return {v: name for name, v in os.environ.items() if len(v) >= _MIN_CHARACTERS and SECRET_NAME.search(name)}


def mask(text: str) -> str:
    """Replace the value of every environment variable named like a secret by ***."""
    return _masked(text, _longest_first())


def mask_all(value: Any) -> Any:
    """Mask every string inside dicts (keys included), lists, tuples and dataclasses.

    Call it before escaping texts for Markdown, HTML or JSON: an escaped secret is not found.
    """
    secrets = _longest_first()
    return _each_text(value, lambda text: _masked(text, secrets)) if secrets else value


def printable(text: str) -> str:
    """Mask a text for a terminal, and write control characters except tab and line feed as \\x1b."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", mask(text))


def printable_all(value: Any) -> Any:
    """Apply `printable` to every string inside dicts (keys included), lists, tuples and dataclasses."""
    return _each_text(value, printable)


def _longest_first() -> list[str]:
    """The secrets, longest first, since one may contain another."""
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
    """(key, name of the variable) for every value that contains a secret environment variable."""
    secrets = _secrets()
    return [(key, name) for key, value in values.items() for secret, name in secrets.items() if secret in str(value)]


def hide_secrets() -> None:
    """Make all log records and uncaught exceptions of this process printable, whatever their logger or handler.

    All records pass through the record factory; filters of the root logger see only its own records, and libraries
    install their own handlers.
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
