"""The training templates of trl: copies of well-known chat templates that write each turn the same way whatever follows
it, and mark with {% generation %} what the assistant says.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zerotune.common.errors import UserError

TRL = "1.16"  # as in pyproject.toml; another version may pair other texts
ENDING = "_training"


def training_template(own: str) -> tuple[str, str] | None:
    """(trl's name of the family, its training template) for the tokenizer's `own`; None if trl has none for it.

    `own` must be the very template that trl's was made from; line ends and one line feed at the end make no difference,
    as they make none to Jinja. Raises UserError if trl is missing or of another version.
    """
    return _pairs().get(_canonical(own))


@cache
def _pairs() -> dict[str, tuple[str, str]]:
    """own template -> (name, training template).

    trl keeps them as NAME.jinja and NAME_training.jinja. They are read from there, since importing trl's function
    (`trl.chat_template_utils.get_training_chat_template`) loads datasets too, for about a second on every rank;
    tests/unit/train/test_training_templates.py holds that both pair the same texts.
    """
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder().glob("*.jinja")}
    pairs = {_canonical(own): (name, texts[name + ENDING]) for name, own in texts.items() if name + ENDING in texts}
    if not pairs:
        raise UserError(f"{folder()} holds no training templates; install trl again: pip install 'trl=={TRL}.*'")
    return pairs


def folder() -> Path:
    """Where trl keeps its templates. Raises UserError if trl is missing or of another version."""
    try:
        found = f"trl {version('trl')}"
    except PackageNotFoundError:
        found = "no trl"
    if not f"{found}.".startswith(f"trl {TRL}."):
        raise UserError(
            f"data.chat_template: tokenizer looks for the training template of a family in trl {TRL}, but {found} is"
            f" installed: pip install 'trl=={TRL}.*', or name another template (chatml, plain, a .jinja file)"
        )
    spec = importlib.util.find_spec("trl")  # finds it without importing it
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


def _canonical(text: str) -> str:
    """The text as Jinja reads it."""
    return re.sub(r"\r\n?", "\n", text).removesuffix("\n")
