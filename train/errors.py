"""The trainer's own errors and their exit codes (docs/resume.md lists them)."""

from __future__ import annotations

from zerotune.common.errors import CannotWriteError, UserError

__all__ = ["CannotWriteError", "EndedWithError", "NoCheckpointError", "NumericsError", "UserError"]


class NumericsError(UserError):
    """Too many updates in a row had no finite gradient."""

    exit_code = 65


class NoCheckpointError(UserError):
    """There are checkpoints, but none that verifies; nothing was deleted."""

    exit_code = 66


class EndedWithError(UserError):
    """This rank ends because another rank failed first. It has that rank's exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
