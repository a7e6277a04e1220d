"""Errors that are the user's to mend: one message with what, where and how; no traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program is wrong. `main` prints the message and exits with `exit_code` (sysexits.h
    numbers).
    """

    exit_code = 64


class CannotWriteError(UserError):
    """A file cannot be written: no space, no permission."""

    exit_code = 73
