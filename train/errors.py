"""The trainer's own errors and their exit codes (docs/resume.md lists them)."""

from __future__ import annotations

from eval.errors import CannotWriteError, UserError

__all__ = ["CannotWriteError", "NoCheckpointError", "NumericsError", "UserError"]


class NumericsError(UserError):
    """Too many updates in a row had no finite gradient."""

    exit_code = 65


class NoCheckpointError(UserError):
    """There are checkpoints, but none that verifies; nothing was deleted."""

    exit_code = 66
