"""`zerotune recipes`: lists or prints the shipped recipes."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence

from zerotune import shipped
from zerotune.common.arguments import Parser
from zerotune.common.errors import UserError
from zerotune.common.suggest import did_you_mean

COLUMNS = 80
GROUPS = {
    "": "zerotune train NAME",
    "data": "Another row format: zerotune train NAME data/FORMAT --data.train.0.path YOURS",
    "eval": "zerotune eval NAME",
    "spaces": "zerotune search NAME --space SPACE",
}


def main(words: Sequence[str]) -> int:
    """Print the list or a recipe. Returns the exit code."""
    about = "List the recipes of ZeroTune, or print one as a start for your own: zerotune recipes demo > my.yaml"
    parser = Parser(prog="zerotune recipes", description=about)
    parser.add_argument("name", nargs="?", metavar="NAME")
    name = parser.parse_args(words).name
    known = shipped.names(shipped.RECIPES)
    if name and (name := name.removesuffix(".yaml")) not in known:
        same = [one for one in known if one.endswith(f"/{name}")]
        near = did_you_mean(name, same, 0) or did_you_mean(name, known) or "; `zerotune recipes` lists them"
        raise UserError(f"{name}: there is no such recipe{near}")
    sys.stdout.write(known[name].read_text(encoding="utf-8") if name else listing())
    return 0


def listing() -> str:
    """All recipes in groups, each with its purpose, in 80 columns."""
    known = shipped.names(shipped.RECIPES)
    width = max(map(len, known)) + 4
    fold = textwrap.TextWrapper(COLUMNS, subsequent_indent=" " * width, break_on_hyphens=False)
    lines = []
    for group, heading in GROUPS.items():
        lines += [heading, ""]
        for name in (name for name in known if name.rpartition("/")[0] == group):
            fold.initial_indent = f"  {name:<{width - 2}}"
            lines += fold.wrap(shipped.about(known[name]))
        lines.append("")
    return "\n".join([*lines, f"Folder: {shipped.RECIPES}", ""])
