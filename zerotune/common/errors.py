"""Errors that the user can fix: one message that names the problem, the place and the fix; no traceback."""

from __future__ import annotations


class UserError(Exception):
    """An error in inputs or environment. `main` prints the message and exits with `exit_code` (see sysexits.h)."""

    exit_code = 64


class CannotWriteError(UserError):
    """A file cannot be written: no space, no permission."""

    exit_code = 73
