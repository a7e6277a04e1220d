"""The command line of the small commands: argparse, with errors like those of all other commands."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from zerotune.common.errors import UserError
from zerotune.common.suggest import did_you_mean


class Parser(argparse.ArgumentParser):
    """Raises UserError instead of printing the usage, and names the option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Raise `message` as UserError."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        near = did_you_mean(unknown[1], re.findall(r"--\w+", self.format_help())) if unknown else ""
        raise UserError(f"{message}{near or f'; `{self.prog} --help` shows the usage'}")
